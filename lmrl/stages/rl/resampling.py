"""Sampling groups anew that say nothing to the optimizer (dynamic sampling; Yu et al. 2025, DAPO, sec. 3.2).

Every rank keeps its number of rows and takes part in every round, so that collectives have the same shape everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.rollout import Scored
from lmrl.algorithms.sequences import join_records
from lmrl.stages.rl.further import FurtherRequests
from lmrl.stages.rl.rollouts import PromptBatch, RolloutMaker

MorePrompts = Callable[[int, Sequence[int]], PromptBatch]
"""(round, group numbers) -> another prompt for each of these groups, as often as the group size says."""


def resample(
    maker: RolloutMaker,
    optimizer: PolicyOptimizer,
    scored: Scored,
    prompts: PromptBatch,
    more: MorePrompts,
    seeds: Callable[[int], int],
    rounds: int,
    accelerator: Any,
    further: FurtherRequests | None = None,
    seen: Callable[[Scored], None] | None = None,
) -> tuple[Scored, PromptBatch, int]:
    """Replace uninformative groups by informative ones of new prompts.

    In each round every uninformative group draws a new prompt and is replaced if that is informative; ``seen`` is
    called with all that a round draws. Returns this rank's rows and prompts, and how many groups of all ranks have
    stayed uninformative.
    """

    def lacking() -> torch.Tensor:
        count: torch.Tensor = accelerator.gather((~_informative_groups(optimizer, scored)).sum()[None])
        return count

    for number in range(rounds):
        if int(lacking().sum()) == 0:
            break
        free = (~_informative_groups(optimizer, scored)).nonzero().squeeze(1).tolist()
        if free:
            fresh_prompts = more(number, free)
            fresh = maker.sample(fresh_prompts, seeds(number), further)
            if seen is not None:
                seen(fresh)
            scored, prompts = _exchange(optimizer, scored, prompts, fresh, fresh_prompts)
    return scored, prompts, int(lacking().sum())


def _informative_groups(optimizer: PolicyOptimizer, scored: Scored) -> torch.Tensor:
    """Say of each group, in the order of its number, whether all its rows are informative.

    Unscored rows are ignored; a group of only these is uninformative.
    """
    group, seen = scored.samples.group, scored.scored
    labels, place = group.unique(return_inverse=True)
    votes = torch.zeros(len(labels), 2, dtype=torch.long, device=group.device)
    if bool(seen.any()):
        rows = optimizer.informative(scored.scores[seen], group[seen])
        votes = votes.index_add(0, place[seen], torch.stack([rows, ~rows], dim=1).long())
    return (votes[:, 0] > 0) & (votes[:, 1] == 0)


def _exchange(
    optimizer: PolicyOptimizer, old: Scored, old_prompts: PromptBatch, new: Scored, new_prompts: PromptBatch
) -> tuple[Scored, PromptBatch]:
    """Put informative new groups in the place of the old ones of the same number."""
    old_rows, new_rows = old_prompts.rows_of_groups(), new_prompts.rows_of_groups()
    found = _informative_groups(optimizer, new).tolist()
    taken = {group for group, informative in zip(sorted(new_rows), found, strict=True) if informative}
    count = len(old_prompts.groups)
    rows = [
        row
        for group in sorted(old_rows)
        for row in ([count + row for row in new_rows[group]] if group in taken else old_rows[group])
    ]
    prompts = join_records([old_prompts, new_prompts]).select(rows)
    chosen = torch.tensor(rows, device=old.scores.device)
    return join_records(with_the_same_parts([old, new])).select(chosen).narrow(), prompts


def with_the_same_parts(records: Sequence[Scored]) -> list[Scored]:
    """Return the records with NaN for terms of the reward that only others have: where all rows were truncated."""
    names = {name for record in records for name in record.score_parts}
    return [record.with_parts(names) for record in records]
