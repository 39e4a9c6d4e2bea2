"""Base of optimizers with a learned value function: generalized advantages and their settings."""

from __future__ import annotations

from dataclasses import dataclass

from lmrl.algorithms import ops
from lmrl.algorithms.optimizer import OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.rollout import Advantages, Rollout
from lmrl.errors import SettingsError


@dataclass
class ActorCriticSettings(OptimizerSettings):
    """Settings of an optimizer that declares ``Needs(values=True)``."""

    value_coefficient: float = 0.5
    """Weight of the value loss."""
    gamma: float = 1.0
    """Discount per token; 1 leaves the objective E[score] - beta KL as it is."""
    gae_lambda: float = 0.95
    """Lambda of the generalized advantage estimate: 1 is the return minus the value, 0 is one-step TD."""
    whiten_advantages: bool = True
    """Scale advantages to zero mean and unit variance over the global batch."""

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")


class ActorCritic(PolicyOptimizer):
    """Base class of such optimizers: write ``loss``, which reads ``batch["returns"]`` and ``batch["old_values"]``."""

    Settings = ActorCriticSettings
    """Dataclass of the optimizer's settings."""
    settings: ActorCriticSettings
    """Settings of this optimizer."""

    def advantages(self, rollout: Rollout) -> Advantages:
        """Estimate generalized advantages (Schulman et al. 2016); the value targets are advantage plus old value.

        The return of a truncated row without a score is its KL shaping plus the bootstrapped value of its last state:
        an estimate, in which the score is not taken to be 0.
        """
        mask, values = rollout.action_mask, rollout.values
        raw = ops.generalized_advantages(
            rollout.rewards,
            values,
            rollout.bootstrap_values,
            mask,
            rollout.truncated,
            self.settings.gamma,
            self.settings.gae_lambda,
        )
        advantages = ops.masked_whiten(raw, rollout.loss_mask) if self.settings.whiten_advantages else raw
        returns = raw + values
        return Advantages(advantages, {"returns": returns, "old_values": values}, {"value_target": returns})
