"""Changes of tensors that an observer was given, found by torch's count of in-place operations; needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def versions(given: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the identity and the number of in-place changes of every tensor in records and mappings, by its name."""
    tensors = (pair for key, value in given.items() for pair in _tensors(value, key))
    return {name: (id(one), 0 if one.is_inference() else one._version) for name, one in tensors}


def first_change(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> str:
    """Return the name of a tensor that was changed, replaced, added or taken away; empty if there is none."""
    return min((name for name in before.keys() | after.keys() if before.get(name) != after.get(name)), default="")


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(type(value), "_version"):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}[{key!r}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}")
