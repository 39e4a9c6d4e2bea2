"""Token sequences of trajectories, and which of their tokens the policy sampled.

A trajectory is one episode of the policy: one sequence, or several where the context was rewritten between turns.
Columns of a rollout are (B, T) over the actions alone: column t of row i is the t-th sampled token of trajectory i,
over all its sequences. Tokens that the policy did not sample (prompts, what a user or a tool said) are in no column.

The functions work on such rows: they pad them, select and join those of records, and cut them into pieces that fit a
budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Part = tuple[Sequence[int], bool]
"""Token ids that follow each other, and whether the policy sampled them."""
Record = TypeVar("Record")


@dataclass(frozen=True)
class Sequences:
    """N token sequences of B trajectories, N >= B.

    A sequence's first token is never an action, because no token precedes it.
    """

    ids: Tensor
    """Token ids, (N, L) int64, right-padded with 0."""
    lengths: Tensor
    """Tokens of each sequence, (N,) int64."""
    sampled: Tensor
    """True on the tokens that the policy sampled and that count as its actions here, (N, L) bool. A sampled token is an
    action in one sequence, and context in others."""
    trajectory: Tensor
    """Row of the columns that a sequence belongs to, (N,) int64: 0, 0, 1, ... without gaps, in the order of
    sampling."""

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

    def prompts_and_costs(self) -> tuple[dict[tuple[int, ...], list[int]], list[int]]:
        """Return the trajectories by their first sequence's context, and the tokens of each without this context."""
        context_lengths = self.context_lengths
        ids, trajectory = self.ids.tolist(), self.trajectory.tolist()
        groups: dict[tuple[int, ...], list[int]] = {}
        costs: list[int] = []
        for place, (length, context) in enumerate(zip(self.lengths.tolist(), context_lengths.tolist(), strict=True)):
            if trajectory[place] < len(costs):
                costs[-1] += length
            else:
                groups.setdefault(tuple(ids[place][:context]), []).append(len(costs))
                costs.append(length - context)
        return groups, costs

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


def pad_rows(
    rows: Sequence[Sequence[int]],
    side: Literal["left", "right"] = "right",
    width: int = 0,
    fill: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return rows of ids as (B, L) int64, and their lengths (B,).

    ``fill`` is the padding on that ``side`` of each row; L is the longest row's length, or ``width`` if that is larger.
    """
    lengths = [len(row) for row in rows]
    width = max(width, *lengths)
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    for place, row in enumerate(rows):
        first = width - len(row) if side == "left" else 0  # padding on the left: ids at the end
        ids[place, first : first + len(row)] = torch.as_tensor(row, dtype=torch.long)
    return ids.to(device), torch.tensor(lengths, device=device)


def select_record(record: Record, rows: Tensor) -> Record:
    """Index every tensor and list of a dataclass (and of its nested records and mappings) by row."""

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.index_select(0, rows)
        if isinstance(value, list):
            return [value[row] for row in rows.tolist()]
        if isinstance(value, tuple):
            return tuple(pick(item) for item in value)
        if isinstance(value, Mapping):
            return {key: pick(item) for key, item in value.items()}
        if hasattr(value, "select"):
            return value.select(rows)
        return value

    values = {f.name: pick(getattr(record, f.name)) for f in dataclasses.fields(record)}  # type: ignore[arg-type]
    return type(record)(**values)


def join_records(records: Sequence[Record]) -> Record:
    """Return the rows of several records of one type below each other; narrower (B, T) columns are padded with 0."""

    def join(values: list[Any]) -> Any:
        first = values[0]
        if hasattr(first, "join") and hasattr(first, "select"):
            return type(first).join(values)
        if isinstance(first, Tensor) and first.ndim == 2:
            width = max(value.shape[1] for value in values)
            return torch.cat([torch.nn.functional.pad(value, (0, width - value.shape[1])) for value in values])
        if isinstance(first, Tensor):
            return torch.cat(values)
        if isinstance(first, list):
            return [item for value in values for item in value]
        if isinstance(first, tuple):
            return tuple(join(list(column)) for column in zip(*values, strict=True))
        if isinstance(first, Mapping):
            return {key: join([value[key] for value in values]) for key in first}
        if dataclasses.is_dataclass(first):
            return join_records(values)
        return first

    names = [f.name for f in dataclasses.fields(records[0])]  # type: ignore[arg-type]
    return type(records[0])(**{name: join([getattr(record, name) for record in records]) for name in names})


def split_by_length(lengths: Tensor, token_budget: int, counts: Tensor | None = None) -> list[Tensor]:
    """Return index tensors that cover all rows, each of rows of like length.

    A piece is cut where (rows x longest row), the positions computed for it with padding, would exceed
    ``token_budget``; a single row may. ``counts`` says how many rows of its length each row stands for, 1 by default.
    Reads the lengths on the host.
    """
    order = torch.argsort(lengths, stable=True)
    numbers = [1] * len(order) if counts is None else counts[order].tolist()
    cuts, first, rows = [], 0, 0
    for place, (length, number) in enumerate(zip(lengths[order].tolist(), numbers, strict=True)):
        if place > first and (rows + number) * length > token_budget:
            cuts.append(place)
            first, rows = place, 0
        rows += number
    return list(order.tensor_split(cuts))


def split_groups(group: Tensor, lengths: Tensor, token_budget: int) -> list[Tensor]:
    """Return index tensors that cover all rows, each of whole groups of at most ``token_budget`` tokens together.

    A single group may exceed the budget. Reads the groups on the host.
    """
    labels, place = group.unique(return_inverse=True)
    costs = torch.zeros(len(labels), dtype=torch.long, device=lengths.device).index_add(0, place, lengths.long())
    pieces: list[int] = []
    left = 0
    for cost in costs.tolist():
        fits = bool(pieces) and cost <= left
        left = (left if fits else token_budget) - cost
        pieces.append((pieces[-1] + (not fits)) if pieces else 0)
    piece = torch.tensor(pieces, device=group.device)[place]
    return [(piece == number).nonzero().squeeze(1) for number in range(pieces[-1] + 1)]


def lengths_to_mask(lengths: Tensor, width: int) -> Tensor:
    """Return the (B, width) bool mask that is true on the first ``lengths[i]`` columns of row i."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def at_last_action(numbers: Tensor, mask: Tensor) -> Tensor:
    """Return (B, T) with each row's number (B,) at the last true column of ``mask`` (B, T), and 0 elsewhere."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, -1).amax(1)
    return (steps == last[:, None]) * numbers[:, None]


def state_positions(inputs: Sequences, width: int, include_last: bool) -> Tensor:
    """Return the (N, width) bool mask of positions whose output predicts a sampled token.

    Position p predicts token p + 1. ``include_last`` adds the state at the end of each trajectory's last sequence.
    """
    chosen = torch.nn.functional.pad(inputs.sampled[:, 1 : width + 1], (0, max(0, width + 1 - inputs.ids.shape[1])))
    if include_last:
        last = inputs.ends_trajectory
        chosen[last, inputs.lengths[last] - 1] = True
    return chosen
