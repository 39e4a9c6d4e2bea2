"""Weights of a live transformers module, as they are published to an engine."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lmrl.errors import EngineError
from lmrl.text.card import TextCodec


class LiveWeights:
    """A ``WeightSource`` over one module. ``synchronous=False`` if it may change while responses are sampled.

    It holds a weak reference, so that an engine keeps no model in memory that its owner has dropped.
    """

    def __init__(self, model: Any, codec: TextCodec | None = None, synchronous: bool = True) -> None:
        self._model, self.codec, self.synchronous = weakref.ref(model), codec, synchronous

    @property
    def model(self) -> Any:
        """The module. Raises ``EngineError`` if it is gone."""
        model = self._model()
        if model is None:
            raise EngineError(
                "the model that was published is gone; keep a reference to it while responses are sampled"
            )
        return model

    @contextmanager
    def module(self) -> Iterator[Any]:
        """Return the module in a context."""
        yield self.model

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the module's parameters and buffers by name, each tensor once."""
        yield from ((name, tensor.detach()) for name, tensor in self.model.named_parameters())
        yield from ((name, tensor.detach()) for name, tensor in self.model.named_buffers())

    def write(self, folder: Path) -> None:
        """Write the module as a transformers folder, without a tokenizer."""
        self.model.save_pretrained(folder)
