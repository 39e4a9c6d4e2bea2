"""The weights of a policy, as they are published to a decode engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lmrl.models.masked import MaskPolicy
from lmrl.models.policy import PolicyModel
from lmrl.models.saving import save_model
from lmrl.text.card import ModelCard
from lmrl.text.folders import copy_tokenizer


class PolicyWeights:
    """A ``WeightSource`` of a policy that learns only between batches; ``mask`` restricts what it may draw."""

    synchronous = True

    def __init__(self, policy: PolicyModel, card: ModelCard, mask: MaskPolicy | None = None) -> None:
        self.policy, self.card, self.mask = policy, card, mask
        self.codec = card.codec

    @contextmanager
    def module(self) -> Iterator[Any]:
        """Give the language model as it is sampled: with action values, and with -inf outside the mask's sets."""
        with self.policy.extracted() as model:
            yield model if self.mask is None else self.mask.restrict(model)

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
