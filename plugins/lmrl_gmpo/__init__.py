"""Geometric-mean policy optimization (Zhao et al. 2025), as a plugin of lmrl.

The ratio of a response is the geometric mean of its tokens' ratios, each clipped in log space before the mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import Advantages, Batch, Loss, OptimizerSettings, Policy, PolicyOptimizer, Rollout, ops
from lmrl.algorithms.preference_losses import sequence_logprobs


@dataclass
class GMPOSettings(OptimizerSettings):
    """Settings of GMPO."""

    clip_range: float = 0.4
    """Log-ratio below 0 from which a token's gradient is cut off, where the advantage is negative."""
    clip_range_high: float = 0.0
    """The same above 0, where the advantage is positive; 0 takes clip_range."""
    normalise_std: bool = True
    """Divide by the group's deviation, as GRPO does."""

    def __post_init__(self) -> None:
        if not (self.clip_range > 0 and self.clip_range_high >= 0):
            raise SettingsError(
                f"clip_range is {self.clip_range} and clip_range_high {self.clip_range_high}; expected clip_range > 0 "
                "and clip_range_high >= 0 (0 takes clip_range)"
            )


class GMPO(PolicyOptimizer):
    """Policy gradient on the geometric mean of a response's clipped token ratios."""

    Settings = GMPOSettings
    settings: GMPOSettings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Normalise each response's return, KL penalty included, within its group."""
        returns, group = rollout.rewards.sum(1), ops.split_off(rollout.group, ~rollout.scored)
        normalised = ops.group_normalise(returns, group, self.settings.normalise_std, rollout.scores)
        metrics = {"return": returns, "tied": (ops.group_spread(rollout.scores, group) == 0).float()}
        return Advantages(normalised[:, None] * rollout.action_mask, metrics=metrics)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return minus the advantage times the geometric mean of every response."""
        now, mask = policy.evaluate(batch).logprobs, batch.action_mask
        log_ratios = now - batch.proximal_logprobs
        low, high = self.settings.clip_range, self.settings.clip_range_high or self.settings.clip_range
        bounded = torch.where(batch.advantages > 0, log_ratios.clamp_max(high), log_ratios.clamp_min(-low))
        ratio = sequence_logprobs(bounded, mask, average=True).exp()
        losses = -ratio * sequence_logprobs(batch.advantages, mask, average=True)
        metrics = {
            "policy_loss": losses,
            "clip_fraction": (bounded != log_ratios).float(),
            "ratio": ratio,
            "approximate_kl": ops.kl_estimate(batch.proximal_logprobs, now, "k3"),
        }
        return Loss(losses, metrics)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register GMPO."""
    needs = Needs(minimum_group_size=2)
    yield OptimizerSpec("gmpo", GMPO, GMPOSettings, needs, "Geometric-mean policy optimization: GRPO, less outliers")
