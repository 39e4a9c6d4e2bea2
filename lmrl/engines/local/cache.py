"""KV caches of the decode engine, whose keys and values are allocated once.

transformers' ``DynamicLayer`` concatenates, so every step copies the whole cache. Here a step writes one column. All
rows write the same column; a row that begins later has its prompt put right before it, and a window leaves out the
columns that no row needs any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
