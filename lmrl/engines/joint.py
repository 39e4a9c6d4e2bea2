"""Several language models that a decode engine drives as one: each token is drawn from what they say together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from lmrl.engines.local.cache import JointCache


class JointModel(ABC):
    """Base class that looks like a transformers model; ``parts`` are the models, of one vocabulary and device."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)
        self.device, self.config = parts[0].device, parts[0].config

    @abstractmethod
    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the logits (..., V) to draw from, of the logits of every part."""

    def __call__(self, *, past_key_values: JointCache | None = None, **inputs: Any) -> SimpleNamespace:
        """Return the combined ``logits``; without a cache, of whole rows."""
        if past_key_values is None:
            return SimpleNamespace(logits=self.combine([part(**inputs).logits for part in self.parts]))
        pairs = zip(self.parts, past_key_values.caches, strict=True)
        return SimpleNamespace(logits=self.combine([part(past_key_values=own, **inputs).logits for part, own in pairs]))


class GeometricMixture(JointModel):
    """The distribution proportional to the product of p_i ** weight_i in each state (Munos et al. 2024)."""

    def __init__(self, parts: Sequence[Any], weights: Sequence[float]) -> None:
        super().__init__(parts)
        self.weights = tuple(weights)

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum of log-probabilities, over the tokens that all parts have."""
        width = min(one.shape[-1] for one in logits)
        mixed = logits[0].new_zeros(*logits[0].shape[:-1], width).float()
        for one, weight in zip(logits, self.weights, strict=True):
            mixed = mixed + weight * one[..., :width].float().log_softmax(-1)
        return mixed
