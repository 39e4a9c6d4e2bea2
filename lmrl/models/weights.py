"""The weights of a policy, as they are published to a decode engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lmrl.algorithms.optimizer import LogitsProcessor
from lmrl.models.policy import PolicyModel
from lmrl.models.saving import save_model
from lmrl.text.card import ModelCard
from lmrl.text.folders import copy_tokenizer


class PolicyWeights:
    """A ``WeightSource`` of a policy that learns only between batches; ``processor`` restricts what it may draw."""

    synchronous = True

    def __init__(self, policy: PolicyModel, card: ModelCard, processor: LogitsProcessor | None = None) -> None:
        self.policy, self.card, self.processor = policy, card, processor
        self.codec = card.codec

    @contextmanager
    def module(self) -> Iterator[Any]:
        """Give the language model as it is sampled: with the optimizer's head, and within its processor's support."""
        with self.policy.extracted() as model:
            yield model if self.processor is None else self.processor.restrict(model)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the language model's parameters and buffers by name."""
        with self.policy.extracted() as model:
            yield from ((name, tensor.detach()) for name, tensor in model.named_parameters())
            yield from ((name, tensor.detach()) for name, tensor in model.named_buffers())

    def write(self, folder: Path) -> None:
        """Write the language model as it is sampled and its tokenizer as a transformers folder."""
        with self.policy.extracted() as model:
            save_model(model, folder)
        copy_tokenizer(self.card.files or self.card.path, folder)
