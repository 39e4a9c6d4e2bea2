"""KV caches of the decode engine, whose keys and values are allocated once.

transformers' ``DynamicLayer`` concatenates, so every step copies the whole cache. Here a step writes one column. All
rows write the same column; a row that begins later has its prompt put right before it, and a window leaves out the
columns that no row needs any more. ``PromptGroups`` holds the keys and values of prompts once, for
``lmrl.engines.local.llama_decoder``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lmrl.errors import ModelError


class WindowBuffer:
    """Columns of keys or values, (B, heads, capacity, width), allocated at the first write.

    Rows can be dropped and repeated; only the columns of the window are then copied.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._buffer: Tensor | None = None

    def write(self, first: int, columns: Tensor) -> None:
        """Write ``columns`` (B, heads, N, width) from column ``first`` on."""
        if self._buffer is None:
            # Zeros, because a masked column that holds a NaN would still spoil the sum.
            self._buffer = columns.new_zeros(*columns.shape[:2], self.capacity, columns.shape[3])
        self._buffer[:, :, first : first + columns.shape[2]] = columns

    def write_rows(self, rows: Tensor, first: int, columns: Tensor) -> None:
        """Write ``columns`` (N, heads, M, width) of these rows (N,) from column ``first`` on."""
        assert self._buffer is not None
        self._buffer[rows, :, first : first + columns.shape[2]] = columns

    def read(self, first: int, end: int) -> Tensor:
        """Return a view of the columns from ``first`` up to ``end``, (B, heads, end - first, width)."""
        assert self._buffer is not None
        return self._buffer[:, :, first:end]

    def select_rows(self, rows: Tensor, first: int, end: int) -> None:
        """Keep (or repeat) these rows (N,) with the columns from ``first`` up to ``end``."""
        old = self._buffer
        if old is None:  # nothing was written yet
            return
        kept = old[:, :, first:end].index_select(0, rows)
        # Fewer rows stay where they are: a buffer for each time that a row ends would cost as much as the step.
        self._buffer = old[: len(rows)] if len(rows) <= len(old) else old.new_zeros(len(rows), *old.shape[1:])
        self._buffer[:, :, first:end] = kept

    def shift(self, first: int, end: int, to: int) -> None:
        """Move the columns from ``first`` up to ``end`` to where column ``to`` is."""
        assert self._buffer is not None
        self._buffer[:, :, to : to + end - first] = self._buffer[:, :, first:end].clone()


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, of which the columns of the window from ``first`` up to ``end`` are shown."""

    def __init__(self, capacity: int, first: int = 0) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.first = self.end = first
        self._buffers = (WindowBuffer(capacity), WindowBuffer(capacity))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new columns and return all that is in the window."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        for buffer, columns in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.write(self.end, columns)
        self.end += key_states.shape[-2]
        self._expose()
        return self.keys, self.values

    def select_rows(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows."""
        for buffer in self._buffers:
            buffer.select_rows(rows, self.first, self.end)
        self._expose()

    def put_rows(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Let these rows (N,) begin with these columns, (N, heads, M, width), which end where the window ends."""
        for buffer, columns in zip(self._buffers, (keys, values), strict=True):
            buffer.write_rows(rows, self.end - columns.shape[2], columns)
        self._expose()

    def narrow(self, first: int) -> None:
        """Let the window begin at column ``first``."""
        self.first = first
        self._expose()

    def shift(self, to: int) -> None:
        """Move the window to where column ``to`` is."""
        for buffer in self._buffers:
            buffer.shift(self.first, self.end, to)
        self.first, self.end = to, to + self.end - self.first
        self._expose()

    def _expose(self) -> None:
        self.keys, self.values = (buffer.read(self.first, self.end) for buffer in self._buffers)


class JointCache:
    """The caches of several models that decode the same tokens side by side."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.caches = tuple(caches)

    @property
    def layers(self) -> list[Any]:
        """The layers of all of them."""
        return [layer for cache in self.caches for layer in cache.layers]


def make_cache(model: Any, capacity: int, first: int = 0) -> Cache | JointCache:
    """Return a preallocated cache, or the family's own where its layers are not all plain full attention.

    A model that consists of several says so by its ``parts``, and is given a cache for each. The first ``first``
    columns are left free, for longer prompts that come later.
    """
    if hasattr(model, "parts"):
        return JointCache([make_cache(part, capacity, first) for part in model.parts])
    own = DynamicCache(config=model.config)
    if own.layers and all(type(layer) is DynamicLayer for layer in own.layers):
        return Cache(layers=[PreallocatedLayer(capacity, first) for _ in own.layers])
    return own


def is_preallocated(cache: Cache | JointCache) -> bool:
    """Say whether rows can be put into this cache one by one."""
    return all(isinstance(layer, PreallocatedLayer) for layer in cache.layers)


def refuse_unfilled(cache: Cache | JointCache, model: Any) -> None:
    """Raise ``ModelError`` if the prompts left nothing in the cache.

    A forward takes any keyword, so a model that keeps its state elsewhere (Mamba, RWKV) drops the cache without a word,
    and every token would be drawn as if nothing stood before it.
    """
    for layer in cache.layers:
        convolutions = getattr(layer, "is_conv_states_initialized", {})
        if getattr(layer, "is_initialized", False) or any(convolutions.values()):
            return
    raise ModelError(
        f"{type(model).__name__} does not keep its state in past_key_values, so responses cannot be decoded step by "
        "step; choose a model with the cache of transformers, or another engine."
    )


def select_rows(cache: Cache | JointCache, rows: Tensor) -> None:
    """Keep (or repeat) these rows of every layer."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.select_rows(rows)
        else:
            layer.reorder_cache(
                rows
            )  # unlike batch_select_indices, every layer has it, convolutions and state spaces too


@dataclass
class PrefilledPrompt:
    """A prompt that has been prefilled: its keys and values, one (heads, length, width) per layer, and its logits."""

    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor

    @property
    def length(self) -> int:
        """The prompt's tokens."""
        return self.keys[0].shape[1]


class PromptGroups:
    """The prompts of the places: their keys and values once, and which places share them.

    Products are taken over (groups, samples); where all groups are as large and in order this is a view of the places,
    elsewhere their rows are gathered, and the places of samples that a group lacks repeat another row.
    """

    def __init__(self, layers: int, longest: int) -> None:
        self.longest = longest
        self.width = 0
        self.keys: list[Tensor] = [torch.empty(0)] * layers
        self.values: list[Tensor] = [torch.empty(0)] * layers
        self.homes: dict[int, int] = {}
        """The row of each prompt in ``keys`` and ``values``."""
        self._gather: Tensor | None = None
        self._scatter: Tensor | None = None
        self._samples = 0

    def arrange(self, numbers: Sequence[int], ready: dict[int, PrefilledPrompt]) -> None:
        """Hold the prompts of these places, (B,), and say where each one's samples are."""
        active = list(dict.fromkeys(numbers))
        if set(active) != set(self.homes):
            self._house(active, ready)
        self.width = max(ready[number].length for number in active)
        members: list[list[int]] = [[] for _ in range(len(self.keys[0]))]
        ranks = []
        for place, number in enumerate(numbers):
            group = members[self.homes[number]]
            ranks.append(len(group))
            group.append(place)
        self._samples = max(len(group) for group in members)
        padded = [(group + [0] * self._samples)[: self._samples] for group in members]
        gather = [place for group in padded for place in group]
        self._gather = self._scatter = None
        if gather != list(range(len(numbers))):
            self._gather = torch.tensor(gather)
            scatter = [self.homes[n] * self._samples + rank for n, rank in zip(numbers, ranks, strict=True)]
            self._scatter = torch.tensor(scatter)

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """Return queries (B, heads, repeats, width) times the prompts' keys, (B, heads, repeats, columns)."""
        grouped = self._group(queries)
        return self._ungroup(grouped @ self.keys[layer][:, :, : self.width].transpose(-1, -2))

    def weigh(self, layer: int, weights: Tensor) -> Tensor:
        """Return weights (B, heads, repeats, columns) times the prompts' values, (B, heads, repeats, width)."""
        return self._ungroup(self._group(weights) @ self.values[layer][:, :, : self.width])

    def _group(self, rows: Tensor) -> Tensor:
        """Return rows (B, heads, repeats, N) as (groups, heads, samples x repeats, N)."""
        if self._gather is not None:
            rows = rows.index_select(0, self._gather)
        grouped: Tensor = rows.unflatten(0, (-1, self._samples)).transpose(1, 2).flatten(2, 3)
        return grouped

    def _ungroup(self, grouped: Tensor) -> Tensor:
        """Undo ``_group``."""
        rows: Tensor = grouped.unflatten(2, (self._samples, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self._scatter is None else rows.index_select(0, self._scatter)

    def _house(self, active: list[int], ready: dict[int, PrefilledPrompt]) -> None:
        """Give every prompt a row; those that stay keep theirs, so that little is copied."""
        stays = {number: row for number, row in self.homes.items() if number in set(active)}
        rows = len(self.keys[0])
        if len(active) > rows or len(active) < rows // 2:
            stays, rows = {}, len(active)
            example = ready[active[0]]
            for layer, (keys, values) in enumerate(zip(example.keys, example.values, strict=True)):
                self.keys[layer] = keys.new_zeros(rows, keys.shape[0], self.longest, keys.shape[2])
                self.values[layer] = values.new_zeros(rows, values.shape[0], self.longest, values.shape[2])
        free = sorted(set(range(rows)) - set(stays.values()), reverse=True)
        self.homes = dict(stays)
        for number in active:
            if number in stays:
                continue
            row = self.homes[number] = free.pop()
            prompt = ready[number]
            for layer, (keys, values) in enumerate(zip(prompt.keys, prompt.values, strict=True)):
                self.keys[layer][row, :, : keys.shape[1]] = keys
                self.values[layer][row, :, : values.shape[1]] = values
