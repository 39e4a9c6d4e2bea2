"""Rows of tensors: padding them, selecting and joining those of records, cutting them into pieces that fit a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record")


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
