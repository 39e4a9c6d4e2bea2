"""A KV cache whose keys and values are allocated once, for the decode engine.

transformers' ``DynamicLayer`` concatenates, so every step copies the whole cache. Here a step writes one column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lmrl.errors import ModelError


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, heads, capacity, width), of which the first ``length`` columns are filled."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new columns and return all that is filled."""
        if self._key_buffer is None or self._value_buffer is None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            self._key_buffer = key_states.new_empty(*key_states.shape[:2], self.capacity, key_states.shape[3])
            self._value_buffer = value_states.new_empty(*value_states.shape[:2], self.capacity, value_states.shape[3])
        end = self.length + key_states.shape[-2]
        self._key_buffer[:, :, self.length : end] = key_states
        self._value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self._expose()
        return self.keys, self.values

    def select_rows(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows; only filled columns are copied."""
        assert self._key_buffer is not None and self._value_buffer is not None
        for name in ("_key_buffer", "_value_buffer"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), *old.shape[1:])
            torch.index_select(old[:, :, : self.length], 0, rows, out=new[:, :, : self.length])
            setattr(self, name, new)
        self._expose()

    def _expose(self) -> None:
        assert self._key_buffer is not None and self._value_buffer is not None
        self.keys = self._key_buffer[:, :, : self.length]
        self.values = self._value_buffer[:, :, : self.length]


class JointCache:
    """The caches of several models that decode the same tokens side by side."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.caches = tuple(caches)

    @property
    def layers(self) -> list[Any]:
        """The layers of all of them."""
        return [layer for cache in self.caches for layer in cache.layers]


def make_cache(model: Any, capacity: int) -> Cache | JointCache:
    """Return a preallocated cache, or the family's own where its layers are not all plain full attention.

    A model that consists of several says so by its ``parts``, and is given a cache for each.
    """
    if hasattr(model, "parts"):
        return JointCache([make_cache(part, capacity) for part in model.parts])
    own = DynamicCache(config=model.config)
    if own.layers and all(type(layer) is DynamicLayer for layer in own.layers):
        return Cache(layers=[PreallocatedLayer(capacity) for _ in own.layers])
    return own


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
