"""Experience other than rollouts: preference pairs, labelled responses and logged trajectories.

Like ``lmrl.algorithms.rollout.Batch`` they are rows with an ``action_mask``, a ``group`` and ``row_lengths``, so that
the trainer cuts, counts and averages all of them alike. A row whose mask is all false is ignored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from lmrl.algorithms.rollout import Rollout, UndeclaredNeed
from lmrl.algorithms.sequences import select_record
from lmrl.errors import UnknownColumn, unknown

COLUMNS = (
    "Pairs of a rollout have the columns that PairBatch.from_rollout gives them; pairs of data have scores where every "
    "ranking has them."
)
"""Sources of columns, for the error about one that is not there."""


class Experience(Protocol):
    """Interface that the trainer requires of the batch that an optimizer's ``loss`` receives."""

    @property
    def action_mask(self) -> Tensor:
        """True on what has a loss, (B, T)."""
        ...

    @property
    def row_lengths(self) -> Tensor:
        """Positions that the policy computes for each row, (B,)."""
        ...

    @property
    def group(self) -> Tensor:
        """Rows with one number stay in one minibatch, (B,)."""
        ...

    @property
    def means(self) -> Mapping[str, float]:
        """Means of ``PolicyOptimizer.statistics`` over the whole minibatch."""
        ...

    def select(self, rows: Tensor) -> Any:
        """Return the rows with these indices."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Responses:
    """Responses that a policy can evaluate: ``policy.evaluate(responses)``."""

    inputs: Any
    """Inputs of the policy; opaque to optimizers."""
    action_mask: Tensor
    """True on the tokens of the responses, (B, T)."""
    declared: Mapping[str, Tensor] = field(default_factory=dict)
    """Columns that the optimizer's spec declares a need for, by name."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Columns of the data by name, (B,) or (B, T), which ``responses["name"]`` reads."""

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.columns:
            raise UnknownColumn(unknown("column", name, self.columns, COLUMNS))
        return self.columns[name]

    @property
    def reference_logprobs(self) -> Tensor:
        """Log-probabilities of the responses' tokens under the reference model, (B, T)."""
        if "reference_logprobs" not in self.declared:
            raise UndeclaredNeed(
                "reference_logprobs was read, but the optimizer's spec does not declare it; register it with "
                "Needs(reference=True)"
            )
        return self.declared["reference_logprobs"]

    def select(self, rows: Tensor) -> Self:
        """Return the rows with these indices."""
        return select_record(self, rows)

    def masked(self, kept: Tensor) -> Responses:
        """Return the same with the mask all false in rows where ``kept`` (B,) is false."""
        return replace(self, action_mask=self.action_mask & kept[:, None])

    def __len__(self) -> int:
        return int(self.action_mask.shape[0])


class _RowsAlone(ABC):
    """Base of batches without groups: every row is a group of its own."""

    @property
    @abstractmethod
    def action_mask(self) -> Tensor:
        """True on what has a loss, (B, T)."""

    @property
    def group(self) -> Tensor:
        """A number of its own for every row, (B,)."""
        return torch.arange(len(self), device=self.action_mask.device)

    def select(self, rows: Tensor) -> Self:
        """Return the rows with these indices."""
        return select_record(self, rows)

    def __len__(self) -> int:
        return int(self.action_mask.shape[0])


@dataclass(frozen=True)
class PairBatch(_RowsAlone):
    """P pairs of responses. Losses are per pair, (P,)."""

    chosen: Responses
    """The preferred response of each pair."""
    rejected: Responses
    """The other response of each pair."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Means of ``PolicyOptimizer.statistics`` over the whole minibatch."""

    @classmethod
    def from_rollout(
        cls,
        rollout: Rollout,
        chosen: Tensor,
        rejected: Tensor,
        kept: Tensor,
        columns: Mapping[str, Tensor] | None = None,
    ) -> PairBatch:
        """Return pairs of rows of a rollout, by index (P,).

        Pairs where ``kept`` (P,) is false (ties, say) stay as rows that count for nothing, so that every rank computes
        as many. Both sides have the rollout's ``scores``, ``sampler_logprobs`` and ``proximal_logprobs`` as columns,
        and further ``columns``, each (B,) or (B, T) for the rows of the rollout.
        """
        rows = _rows(rollout, columns or {})
        return cls(rows.select(chosen).masked(kept), rows.select(rejected).masked(kept))

    @classmethod
    def with_further(
        cls, rollout: Rollout, kept: Tensor, columns: Mapping[str, Tensor] | None = None, place: int = 0
    ) -> PairBatch:
        """Return every row of a rollout (``chosen``) with a further response of its group (``rejected``).

        The names do not say which is better: put that into ``columns``. ``kept`` (B,) and the columns of the rollout's
        rows are as in ``from_rollout``. ``place`` is the further request's number.
        """
        return cls(_rows(rollout, columns or {}).masked(kept), rollout.further_responses[place].masked(kept))

    @property
    def action_mask(self) -> Tensor:
        """True on the tokens of both responses, (P, T + T')."""
        return torch.cat([self.chosen.action_mask, self.rejected.action_mask], dim=1)

    @property
    def row_lengths(self) -> Tensor:
        """Positions of both rows of a pair, (P,)."""
        lengths: Tensor = self.chosen.inputs.row_lengths + self.rejected.inputs.row_lengths
        return lengths


def _rows(rollout: Rollout, columns: Mapping[str, Tensor]) -> Responses:
    """Return the rows of a rollout with its own columns and further ones."""
    own = {name: getattr(rollout, name) for name in ("scores", "sampler_logprobs", "proximal_logprobs")}
    for name, column in columns.items():
        if len(column) != len(rollout):
            raise ValueError(
                f"column {name!r} has {len(column)} rows; expected one for each of the rollout's {len(rollout)}"
            )
        own[name] = column.detach()
    return Responses(rollout.inputs, rollout.action_mask, rollout.declared, own)


@dataclass(frozen=True)
class LabelledBatch(_RowsAlone):
    """B responses, each labelled on its own. Losses are per row, (B,)."""

    responses: Responses
    """The labelled responses."""
    desirable: Tensor
    """True where the label is good, (B,) bool."""
    mismatched: Responses
    """The same prompts with responses to other prompts of the batch: KTO estimates its reference point from these."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Means of ``PolicyOptimizer.statistics`` over the whole minibatch."""

    @property
    def action_mask(self) -> Tensor:
        """True on the tokens of the responses, (B, T)."""
        return self.responses.action_mask

    @property
    def row_lengths(self) -> Tensor:
        """Positions of a row and of its mismatched one, (B,)."""
        lengths: Tensor = self.responses.inputs.row_lengths + self.mismatched.inputs.row_lengths
        return lengths


@dataclass(frozen=True)
class TrajectoryBatch(_RowsAlone):
    """B logged responses with their rewards. Losses are per token, (B, T), or per row, (B,)."""

    responses: Responses
    """The logged responses."""
    rewards: Tensor
    """Reward of every action, (B, T): a response's reward is on its last action."""
    terminated: Tensor
    """True where nothing follows the last action, (B,) bool: the value of the state after it is 0. In other rows that
    value is unknown."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Means of ``PolicyOptimizer.statistics`` over the whole minibatch."""

    @property
    def action_mask(self) -> Tensor:
        """True on the tokens of the responses, (B, T)."""
        return self.responses.action_mask

    @property
    def row_lengths(self) -> Tensor:
        """Positions of each row, (B,)."""
        lengths: Tensor = self.responses.inputs.row_lengths
        return lengths


@dataclass(frozen=True)
class DemonstrationBatch(_RowsAlone):
    """B answers or raw texts to imitate. Losses are per token, (B, T), or per row, (B,)."""

    responses: Responses
    """The answers; of a raw text everything after its first token."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Means of ``PolicyOptimizer.statistics`` over the whole minibatch."""

    @property
    def action_mask(self) -> Tensor:
        """True on the tokens of the answers, (B, T)."""
        return self.responses.action_mask

    @property
    def row_lengths(self) -> Tensor:
        """Positions of each row, (B,)."""
        lengths: Tensor = self.responses.inputs.row_lengths
        return lengths
