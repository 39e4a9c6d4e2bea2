"""Token sequences of trajectories, and which of their tokens the policy sampled.

A trajectory is one episode of the policy: one sequence, or several where the context was rewritten between turns.
Columns of a rollout are (B, T) over the actions alone: column t of row i is the t-th sampled token of trajectory i,
over all its sequences. Tokens that the policy did not sample (prompts, what a user or a tool said) are in no column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmrl.algorithms.rows import lengths_to_mask

Part = tuple[Sequence[int], bool]
"""Token ids that follow each other, and whether the policy sampled them."""


@dataclass(frozen=True)
class Sequences:
    """N token sequences of B trajectories, N >= B.

    Shapes: ``ids`` (N, L) int64, right-padded with 0; ``lengths`` (N,) int64; ``sampled`` (N, L) bool, true on the
    tokens that the policy sampled and that count as its actions here: a sampled token is an action in one sequence, and
    context in others. ``trajectory`` (N,) int64 says which row of the columns a sequence belongs to: 0, 0, 1, ...
    without gaps, in the order of sampling. A sequence's first token is never an action: nothing stands before it.
    """

    ids: Tensor
    lengths: Tensor
    sampled: Tensor
    trajectory: Tensor

    @classmethod
    def of(
        cls, trajectories: Iterable[Sequence[Sequence[Part]]], device: torch.device | str | None = None
    ) -> Sequences:
        """Return trajectories that are given as their sequences, each a list of parts (ids, whether sampled).

        Raises ``ValueError`` for a trajectory without a sequence and for a sequence whose first token is sampled.
        >>> Sequences.of([[[([5, 6], False), ([7], True), ([8], False), ([9], True)]]]).sampled.tolist()
        [[False, False, True, False, True]]
        """
        rows: list[Sequence[Part]] = []
        trajectory: list[int] = []
        for number, sequences in enumerate(trajectories):
            if not sequences:
                raise ValueError(f"trajectory {number} has no sequence; expected at least its prompt")
            rows += sequences
            trajectory += [number] * len(sequences)
        lengths = [sum(len(part) for part, _ in row) for row in rows]
        ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
        sampled = np.zeros(ids.shape, dtype=np.bool_)
        for place, row in enumerate(rows):
            end = 0
            for part, is_sampled in row:
                start, end = end, end + len(part)
                ids[place, start:end] = part
                sampled[place, start:end] = is_sampled
        if sampled[:, 0].any():
            place = int(sampled[:, 0].argmax())
            raise ValueError(f"the first token of sequence {place} is sampled; expected at least one token before it")
        arrays = (ids, np.array(lengths), sampled, np.array(trajectory))
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    @classmethod
    def of_pairs(
        cls, rows: Iterable[tuple[Sequence[int], Sequence[int]]], device: torch.device | str | None = None
    ) -> Sequences:
        """Return trajectories of one turn, given as pairs of prompt ids and response ids."""
        return cls.of(([[(prompt, False), (response, True)]] for prompt, response in rows), device)

    @cached_property
    def count(self) -> int:
        """The number B of trajectories."""
        return int(self.trajectory[-1]) + 1

    @cached_property
    def action_counts(self) -> Tensor:
        """Sampled tokens of each trajectory, (B,)."""
        return self._over_trajectories(self.sampled.sum(1))

    @cached_property
    def width(self) -> int:
        """The number T of columns: the actions of the trajectory that has most."""
        return int(self.action_counts.max())

    @property
    def actions(self) -> Tensor:
        """All sampled tokens in the order of the columns, row by row: (sum of ``action_counts``,)."""
        return self.ids[self.sampled]

    @cached_property
    def action_ids(self) -> Tensor:
        """The sampled tokens as a column, (B, T), 0 where there is none."""
        return self.columns(self.actions)

    def action_rows(self) -> list[list[int]]:
        """Return the sampled tokens of each trajectory as lists."""
        actions, counts = self.actions.tolist(), self.action_counts.tolist()
        ends = list(accumulate(counts))
        return [actions[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def action_mask(self, width: int | None = None) -> Tensor:
        """Return which columns hold an action, (B, T) bool; ``width`` is T where that shall be larger."""
        return lengths_to_mask(self.action_counts, self.width if width is None else width)

    def columns(self, flat: Tensor, width: int | None = None) -> Tensor:
        """Return values of all actions, in the order of ``actions``, as a (B, T) column, 0 where there is no action."""
        mask = self.action_mask(width)
        return flat.new_zeros(mask.shape).masked_scatter(mask, flat)

    @property
    def context_lengths(self) -> Tensor:
        """Tokens before the first sampled one of each sequence, (N,); the whole length where none was sampled."""
        return torch.where(self.sampled.any(1), self.sampled.int().argmax(1), self.lengths)

    @property
    def ends_trajectory(self) -> Tensor:
        """True on the last sequence of each trajectory, (N,)."""
        after = torch.cat([self.trajectory[1:], self.trajectory[-1:] + 1])
        return after != self.trajectory

    @property
    def row_lengths(self) -> Tensor:
        """Tokens of each trajectory over all its sequences, (B,)."""
        return self._over_trajectories(self.lengths)

    @cached_property
    def sequence_counts(self) -> Tensor:
        """Sequences of each trajectory, (B,)."""
        return self._over_trajectories(torch.ones_like(self.lengths))

    def select(self, rows: Tensor) -> Sequences:
        """Return these trajectories (R,), by index, with all their sequences."""
        if self.count == len(self.lengths):
            places, trajectory = rows, torch.arange(len(rows), device=rows.device)
        else:
            counts = self.sequence_counts
            chosen = counts[rows]
            trajectory = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), chosen)
            within = torch.arange(len(trajectory), device=rows.device) - (chosen.cumsum(0) - chosen)[trajectory]
            places = (counts.cumsum(0) - counts)[rows][trajectory] + within
        found = Sequences(
            self.ids.index_select(0, places), self.lengths[places], self.sampled.index_select(0, places), trajectory
        )
        found.__dict__["count"] = len(rows)  # known here, so that no device is asked
        return found

    @classmethod
    def join(cls, several: Sequence[Any]) -> Sequences:
        """Return the trajectories of all, below each other."""
        width = max(one.ids.shape[1] for one in several)

        def padded(tensor: Tensor) -> Tensor:
            return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))

        offsets, total = [], 0
        for one in several:
            offsets.append(one.trajectory + total)
            total += one.count
        return cls(
            torch.cat([padded(one.ids) for one in several]),
            torch.cat([one.lengths for one in several]),
            torch.cat([padded(one.sampled) for one in several]),
            torch.cat(offsets),
        )

    def _over_trajectories(self, numbers: Tensor) -> Tensor:
        """Return the sum of (N,) numbers over the sequences of each trajectory, (B,)."""
        if self.count == len(numbers):
            return numbers
        return numbers.new_zeros(self.count).index_add(0, self.trajectory, numbers)
