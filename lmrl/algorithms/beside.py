"""Models beside the policy, as an optimizer declares them (``PolicyOptimizer.models``).

Two names are always there: ``"policy"`` and, with ``Needs(reference=True)``, ``"reference"``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmrl.errors import PluginError, SettingsError, unknown

POLICY = "policy"
"""The name of the model that learns."""
REFERENCE = "reference"
"""The name of the frozen reference model."""


@dataclass(frozen=True)
class NamedModel:
    """A model that is evaluated (``policy.other("name").evaluate(batch)``) and sampled (``Request(model="name")``).

    Raises ``SettingsError`` for a ``decay`` out of range, and for one below 1 together with a ``path``.
    """

    path: str | None = None
    """Folder or hub id of a model with the policy's vocabulary; None is a copy of the initial policy. An empty path
    raises an error that names ``setting``."""
    decay: float = 1.0
    """Weight of the model in the moving average decay * model + (1 - decay) * policy after every update; 1 is a frozen
    model."""
    setting: str = ""
    """Setting that ``path`` comes from, for error messages."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise SettingsError(f"decay is {self.decay}; expected a number from 0 to 1 (1: the model is frozen)")
        if self.path is not None and self.moves:
            raise SettingsError(f"decay is {self.decay} for the model {self.path}; expected 1: only a copy can follow")

    @property
    def moves(self) -> bool:
        """True if the model follows the policy."""
        return self.decay < 1


@dataclass(frozen=True)
class Mixture:
    """A geometric mixture of models, to be sampled: log p = sum of weight * log p_name, renormalized in each state.

    Raises ``SettingsError`` for no weights, and for one that is not finite.
    """

    weights: Mapping[str, float]
    """Weights by the models' names, ``"policy"`` and ``"reference"`` included."""

    def __post_init__(self) -> None:
        if not self.weights or not all(math.isfinite(weight) for weight in self.weights.values()):
            raise SettingsError(f"the weights of a mixture are {dict(self.weights)}; expected finite numbers")


def no_such_model(name: str, known: Iterable[str]) -> PluginError:
    """Return the error for a name that belongs to no model beside the policy."""
    way = "Needs(reference=True)" if name == REFERENCE else "it in the optimizer's models()"
    return PluginError(f"{unknown('model', name, sorted(known))} Declare {way}.")
