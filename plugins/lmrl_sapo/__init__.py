"""Soft adaptive policy optimization (Gao et al. 2025), as a plugin of lmrl.

A sigmoid of the token's ratio takes the place of clipping: gradients fade away from the policy that sampled, and faster
where the advantage is negative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import (
    Advantages,
    Batch,
    Loss,
    LossAggregation,
    OptimizerSettings,
    Policy,
    PolicyOptimizer,
    Rollout,
    ops,
)


@dataclass
class SAPOSettings(OptimizerSettings):
    """Settings of SAPO."""

    loss_aggregation: LossAggregation = "sequence_mean"
    """sequence_mean as in the paper: mean over responses of each one's token mean."""
    temperature: float = 1.0
    """Steepness of the gate where the advantage is positive: the higher, the sooner gradients fade."""
    negative_temperature: float = 1.05
    """The same where it is negative."""
    normalise_std: bool = True
    """Divide by the group's deviation, as GRPO does."""

    def __post_init__(self) -> None:
        for name in ("temperature", "negative_temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a finite number above 0")


class SAPO(PolicyOptimizer):
    """Policy gradient whose ratios pass through a sigmoid instead of being clipped."""

    Settings = SAPOSettings
    settings: SAPOSettings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Normalise each response's return, KL penalty included, within its group."""
        returns, group = rollout.rewards.sum(1), ops.split_off(rollout.group, ~rollout.scored)
        normalised = ops.group_normalise(returns, group, self.settings.normalise_std, rollout.scores)
        metrics = {"return": returns, "tied": (ops.group_spread(rollout.scores, group) == 0).float()}
        return Advantages(normalised[:, None] * rollout.action_mask, metrics=metrics)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return minus the advantage times the gate of every token."""
        now, settings = policy.evaluate(batch).logprobs, self.settings
        ratio = (now - batch.proximal_logprobs).exp()
        temperature = torch.where(batch.advantages > 0, settings.temperature, settings.negative_temperature)
        gate = torch.sigmoid(temperature * (ratio - 1))
        losses = -4 / temperature * gate * batch.advantages
        metrics = {"policy_loss": losses, "gate": 4 * gate * (1 - gate), "ratio": ratio}
        return Loss(losses, metrics | {"approximate_kl": ops.kl_estimate(batch.proximal_logprobs, now, "k3")})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register SAPO."""
    needs = Needs(minimum_group_size=2)
    yield OptimizerSpec("sapo", SAPO, SAPOSettings, needs, "Soft adaptive policy optimization: a gate for the clipping")
