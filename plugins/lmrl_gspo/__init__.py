"""Group sequence policy optimization (Zheng et al. 2025), as a plugin of lmrl.

The ratio is that of whole answers, taken to the power 1 / length: exp of the mean log-ratio over the answer's tokens.
Clipping and the loss are per answer.
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
from lmrl.algorithms.preference_losses import sequence_logprobs


@dataclass
class GSPOSettings(OptimizerSettings):
    """Settings of GSPO."""

    loss_aggregation: LossAggregation = "sequence_mean"
    """Losses are per answer, so this changes nothing but the KL's share if that is placed in the loss."""
    clip_range: float = 3e-4
    """Distance of an answer's ratio below 1 from which its gradient is cut off; a mean over tokens, so small."""
    clip_range_high: float = 4e-4
    """The same above 1; 0 takes clip_range."""
    normalise_std: bool = True
    """Divide by the group's deviation, as GRPO does."""

    def __post_init__(self) -> None:
        if not (self.clip_range > 0 and self.clip_range_high >= 0):
            raise SettingsError(
                f"clip_range is {self.clip_range} and clip_range_high {self.clip_range_high}; expected clip_range > 0 "
                "and clip_range_high >= 0 (0 takes clip_range)"
            )


class GSPO(PolicyOptimizer):
    """Clipped policy gradient on the likelihood ratio of whole answers."""

    Settings = GSPOSettings
    settings: GSPOSettings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Normalise each answer's return, KL shaping included, within its group."""
        returns, group = rollout.rewards.sum(1), ops.split_off(rollout.group, ~rollout.scored)
        normalised = ops.group_normalise(returns, group, self.settings.normalise_std, rollout.scores)
        metrics = {"return": returns, "tied": (ops.group_spread(rollout.scores, group) == 0).float()}
        return Advantages(normalised[:, None] * rollout.action_mask, metrics=metrics)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return the clipped surrogate of every answer."""
        now = policy.evaluate(batch)
        log_ratios = ops.sequence_log_ratios(now.logprobs, batch.proximal_logprobs, batch.action_mask)
        low, high = self.settings.clip_range, self.settings.clip_range_high or self.settings.clip_range
        advantages = sequence_logprobs(batch.advantages, batch.action_mask, average=True)
        losses, clipped = ops.clipped_surrogate(log_ratios, torch.zeros_like(log_ratios), advantages, low, high)
        metrics = {
            "policy_loss": losses,
            "clip_fraction": clipped.float(),
            "ratio": log_ratios.exp(),
            "approximate_kl": ops.kl_estimate(batch.proximal_logprobs, now.logprobs, "k3"),
        }
        return Loss(losses, metrics)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register GSPO."""
    yield OptimizerSpec(
        name="gspo",
        build=GSPO,
        settings=GSPOSettings,
        needs=Needs(minimum_group_size=2),
        summary="Group sequence policy optimization: ratios and clipping of whole answers",
    )
