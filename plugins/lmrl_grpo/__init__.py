"""Group relative policy optimization (Shao et al. 2024), as a plugin of lmrl, with its well-known variants as settings.

The advantage of an answer is its return minus the mean of its group, over the group's deviation. Dr. GRPO (Liu et al.
2025), DAPO (Yu et al. 2025) and BNPO (Xiao et al. 2025) change the normalisation, the clipping, the averaging and which
groups are sampled; docs/optimizers/grpo.md says which settings make which. Unscored responses are compared with
nothing and have no advantage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

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
class GRPOSettings(OptimizerSettings):
    """Settings of GRPO."""

    loss_aggregation: LossAggregation = "sequence_mean"
    """sequence_mean as in the paper; token_mean: DAPO; sequence_sum: Dr. GRPO."""
    normalisation: Literal["std", "none", "beta"] = "std"
    """std: divide by the group's deviation; none: centre only (Dr. GRPO); beta: for scores 0 and 1 (BNPO)."""
    clip_range: float = 0.2
    """Distance of the ratio pi / pi_old below 1 from which its gradient is cut off."""
    clip_range_high: float = 0.0
    """The same above 1; 0 takes clip_range. DAPO's 0.28 leaves unlikely tokens room to grow."""
    overlong_length: int = 0
    """Answers as long as this lose a whole point (DAPO's soft punishment); 0 switches it off."""
    overlong_buffer: int = 16
    """Tokens below overlong_length over which that point is lost linearly."""
    dynamic_sampling: bool = False
    """Sample groups anew whose answers all have the same score (DAPO); train.resamples says how often."""

    def __post_init__(self) -> None:
        if not (self.clip_range > 0 and self.clip_range_high >= 0):
            raise SettingsError(
                f"clip_range is {self.clip_range} and clip_range_high {self.clip_range_high}; expected clip_range > 0 "
                "and clip_range_high >= 0 (0 takes clip_range)"
            )
        if self.overlong_length < 0:
            raise SettingsError(f"overlong_length is {self.overlong_length}; expected an integer >= 0 (0 is off)")
        if self.overlong_length and not 0 < self.overlong_buffer <= self.overlong_length:
            raise SettingsError(
                f"overlong_buffer is {self.overlong_buffer}; expected a number from 1 to overlong_length, "
                f"{self.overlong_length}"
            )

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return {} if self.overlong_length else {"overlong_buffer": "overlong_length above 0"}


class GRPO(PolicyOptimizer):
    """Clipped policy gradient whose baseline and scale come from the prompt's other answers."""

    Settings = GRPOSettings
    settings: GRPOSettings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Normalise each answer's return, KL shaping included, within its group."""
        settings, returns, shown = self.settings, rollout.rewards.sum(1), rollout.scores
        group = ops.split_off(rollout.group, ~rollout.scored)
        metrics = {"tied": (ops.group_spread(rollout.scores, group) == 0).float()}
        if settings.overlong_length:
            lengths = rollout.action_mask.sum(1)
            penalty = ops.overlong_penalty(lengths, settings.overlong_length, settings.overlong_buffer)
            returns, shown, metrics["overlong_penalty"] = returns + penalty, shown + penalty, penalty
        if settings.normalisation == "beta":
            normalised = ops.beta_normalise(returns, group, rollout.scores)
        else:
            normalised = ops.group_normalise(returns, group, settings.normalisation == "std", shown)
        metrics["return"] = returns
        return Advantages(normalised[:, None] * rollout.action_mask, metrics=metrics)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return the clipped surrogate of every token."""
        now = policy.evaluate(batch)
        low, high = self.settings.clip_range, self.settings.clip_range_high or self.settings.clip_range
        losses, clipped = ops.clipped_surrogate(now.logprobs, batch.proximal_logprobs, batch.advantages, low, high)
        metrics = {
            "policy_loss": losses,
            "clip_fraction": clipped.float(),
            "ratio": (now.logprobs - batch.proximal_logprobs).exp(),
            "approximate_kl": ops.kl_estimate(batch.proximal_logprobs, now.logprobs, "k3"),
        }
        return Loss(losses, metrics)


class DynamicGRPO(GRPO):
    """GRPO that learns only from groups whose answers differ in score."""

    def informative(self, scores: Tensor, group: Tensor) -> Tensor:
        """Say which rows belong to a group with two scores that differ."""
        return ops.group_spread(scores, group) > 0


def build(settings: GRPOSettings) -> GRPO:
    """Return the class that the settings ask for."""
    return DynamicGRPO(settings) if settings.dynamic_sampling else GRPO(settings)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register GRPO."""
    yield OptimizerSpec(
        name="grpo",
        build=build,
        settings=GRPOSettings,
        needs=Needs(minimum_group_size=2),
        summary="Group relative policy optimization, with Dr. GRPO, DAPO and BNPO as settings",
    )
