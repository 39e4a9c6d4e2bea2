"""Proximal policy optimization (Schulman et al. 2017), as a plugin of lmrl.

Clipped surrogate, clipped value loss, GAE over terminated and truncated episodes, advantage whitening, entropy bonus
and a target-KL stop. The KL to the reference is the trainer's (``[kl]``), not this plugin's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import ActorCritic, ActorCriticSettings, Batch, Loss, Policy, ops


@dataclass
class PPOSettings(ActorCriticSettings):
    """Settings of PPO."""

    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Gradient steps per pass: each rollout is cut into this many minibatches."""
    clip_range: float = 0.2
    """Distance of the ratio pi / pi_old from 1 from which its gradient is cut off."""
    clip_range_high: float = 0.0
    """The same above 1 alone; 0 takes clip_range."""
    dual_clip: float = 0.0
    """Above 1, bounds the loss of bad actions by this times the advantage, whatever the ratio; 0 switches it off."""
    value_clip_range: float = 0.2
    """Distance of a value from its old estimate from which its gradient is cut off; 0 switches it off."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    target_kl: float = 0.0
    """Skip the rest of a rollout's epochs once the KL from the sampling policy per token exceeds this; 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_range <= 0 or self.clip_range_high < 0:
            raise SettingsError(
                f"clip_range is {self.clip_range} and clip_range_high {self.clip_range_high}; expected clip_range > 0 "
                "and clip_range_high >= 0 (0 takes clip_range)"
            )
        if self.dual_clip and self.dual_clip <= 1:
            raise SettingsError(f"dual_clip is {self.dual_clip}; expected a number above 1, or 0 to switch it off")


class PPO(ActorCritic):
    """Clipped policy gradient with a learned value function."""

    Settings = PPOSettings
    settings: PPOSettings

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return clipped surrogate + value loss - entropy bonus of every token."""
        now = policy.evaluate(batch)
        low, high = self.settings.clip_range, self.settings.clip_range_high or self.settings.clip_range
        surrogate, clipped = ops.clipped_surrogate(
            now.logprobs, batch.proximal_logprobs, batch.advantages, low, high, self.settings.dual_clip
        )
        value_loss = ops.clipped_value_loss(
            now.values, batch["old_values"], batch["returns"], self.settings.value_clip_range
        )
        losses = surrogate + self.settings.value_coefficient * value_loss
        metrics = {
            "policy_loss": surrogate,
            "value_loss": value_loss,
            "clip_fraction": clipped.float(),
            "ratio": (now.logprobs - batch.proximal_logprobs).exp(),
            "approximate_kl": ops.kl_estimate(batch.proximal_logprobs, now.logprobs, "k3"),
        }
        if self.settings.entropy_coefficient:
            losses = losses - self.settings.entropy_coefficient * now.entropy
        return Loss(losses, metrics)

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Stop once the policy has moved further from the sampling policy than ``target_kl``."""
        return 0 < self.settings.target_kl < metrics["approximate_kl"]


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register PPO."""
    yield OptimizerSpec(
        name="ppo",
        build=PPO,
        settings=PPOSettings,
        needs=Needs(values=True),
        summary="Proximal policy optimization: clipped surrogate, value function, GAE",
    )
