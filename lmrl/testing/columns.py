"""Records of tensors, changed or compared as a whole: every (B, T) column gets wider, every tensor is copied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lmrl.algorithms.rollout import Rollout

Record = TypeVar("Record")


def map_tensors(record: Record, change: Callable[[Tensor], Tensor]) -> Record:
    """Return a copy of nested frozen dataclasses and mappings with every tensor replaced by ``change(tensor)``."""

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, Mapping):
            return {key: apply(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(apply(item) for item in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return type(value)(**{f.name: apply(getattr(value, f.name)) for f in dataclasses.fields(value)})
        return value

    changed: Record = apply(record)
    return changed


def with_gap(record: Record, place: int, columns: int = 1) -> Record:
    """Return the record with empty columns at ``place`` of every (B, T) tensor: 0, and no action by the mask."""

    def widen(tensor: Tensor) -> Tensor:
        if tensor.ndim != 2:
            return tensor
        gap = tensor.new_zeros(len(tensor), columns)
        return torch.cat([tensor[:, :place], gap, tensor[:, place:]], dim=1)

    wide: Any = map_tensors(record, widen)
    if isinstance(record, Rollout) and "further_scores" in record.declared:  # (B, K), no column of actions
        declared = {**wide.declared, "further_scores": record.declared["further_scores"]}
        wide = dataclasses.replace(wide, declared=declared)
    result: Record = wide
    return result


def clone(record: Record) -> Record:
    """Return a copy that shares no memory."""
    return map_tensors(record, lambda tensor: tensor.detach().clone())


def named_tensors(record: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its dotted name."""
    if isinstance(record, Tensor):
        yield name, record
    elif isinstance(record, Mapping):
        for key, item in record.items():
            yield from named_tensors(item, f"{name}.{key}".strip("."))
    elif isinstance(record, tuple):
        for place, item in enumerate(record):
            yield from named_tensors(item, f"{name}.{place}".strip("."))
    elif dataclasses.is_dataclass(record) and not isinstance(record, type):
        for field in dataclasses.fields(record):
            yield from named_tensors(getattr(record, field.name), f"{name}.{field.name}".strip("."))


def first_change(before: Any, after: Any) -> str:
    """Return the name of the first tensor that is not what it was, bit for bit; empty if all are."""
    for (name, old), (_, new) in zip(named_tensors(before), named_tensors(after), strict=True):
        same = old.shape == new.shape and old.dtype == new.dtype
        if not same or not torch.equal(old.nan_to_num(nan=7.5), new.nan_to_num(nan=7.5)):
            return name
    return ""
