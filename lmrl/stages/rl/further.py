"""Further requests beside those of a batch: greedy responses, responses of other models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lmrl.algorithms.rollout import Scored
from lmrl.engines.protocol import Request
from lmrl.errors import PluginError
from lmrl.seeds import derive_seed

if TYPE_CHECKING:
    from lmrl.stages.rl.rollouts import PromptBatch

FurtherRequests = Callable[[Sequence[Request]], Sequence[Request]]
"""Requests of one group -> requests to the same prompt whose responses are scored beside them and not learned from."""


@dataclass(frozen=True)
class FurtherBatch:
    """Further requests beside those of a batch, as many to each group."""

    prompts: PromptBatch
    requests: list[Request]

    @classmethod
    def of(cls, prompts: PromptBatch, requests: Sequence[Request], further: FurtherRequests) -> FurtherBatch | None:
        """Ask ``further`` about every group; None if it makes no request.

        Raises ``PluginError`` for numbers that differ between groups, and for requests to another prompt.
        """
        first, made, counts = [], list[Request](), set()
        for rows in prompts.rows_of_groups().values():
            found = list(further([requests[row] for row in rows]))
            if any(list(request.ids) != list(requests[rows[0]].ids) for request in found):
                raise PluginError("further_requests returned a request with other ids; expected those of the group")
            first += [rows[0]] * len(found)
            made += found
            counts.add(len(found))
        if len(counts) > 1:
            raise PluginError(
                f"further_requests returned {' and '.join(map(str, sorted(counts)))} requests; expected as many for "
                "every group"
            )
        numbered = [
            replace(request, id=len(requests) + place, seed=derive_seed(request.seed, "further", place % max(counts)))
            for place, request in enumerate(made)
        ]
        return cls(prompts.select(first), numbered) if made else None

    def put(self, scored: Scored, found: Scored, groups: Sequence[int]) -> Scored:
        """Return ``scored`` with the further responses of each row's group and their scores, NaN where one has none."""
        scores = found.scores.masked_fill(~found.scored, torch.nan)
        places = self.prompts.rows_of_groups()
        rows = torch.tensor([places[group] for group in groups], device=scores.device)  # (B, K)
        further = tuple(found.samples.select(column).narrow() for column in rows.unbind(1))
        return replace(scored, further_scores=scores[rows], further=further)
