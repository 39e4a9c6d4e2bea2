"""REINFORCE++ and its baseline form (Hu 2025), as a plugin of lmrl.

REINFORCE with the stabilisers of PPO and without its critic: returns to go with the KL shaping of every token, whitened
over the global batch, and a clipped ratio. The baseline form subtracts the group's mean score first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import Advantages, Batch, Loss, OptimizerSettings, Policy, PolicyOptimizer, Rollout, ops


@dataclass
class ReinforcePPSettings(OptimizerSettings):
    """Settings of REINFORCE++; token_mean is the average of OpenRLHF."""

    clip_range: float = 0.2
    """Distance of the ratio pi / pi_old from 1 from which its gradient is cut off."""
    gamma: float = 1.0
    """Discount per token; 1 leaves the objective E[score] - beta KL as it is."""
    whiten_advantages: bool = True
    """Scale advantages to zero mean and unit variance over the global batch."""

    def __post_init__(self) -> None:
        if self.clip_range <= 0:
            raise SettingsError(f"clip_range is {self.clip_range}; expected a number above 0")
        if not 0 <= self.gamma <= 1:
            raise SettingsError(f"gamma is {self.gamma}; expected a number from 0 to 1")


class ReinforcePP(PolicyOptimizer):
    """Clipped policy gradient on globally whitened returns."""

    Settings = ReinforcePPSettings
    settings: ReinforcePPSettings

    def returns(self, rollout: Rollout) -> Advantages:
        """Return each token's return to go."""
        return Advantages(ops.returns_to_go(rollout.rewards, rollout.action_mask, self.settings.gamma))

    def advantages(self, rollout: Rollout) -> Advantages:
        """Whiten the returns over the global batch."""
        found = self.returns(rollout)
        if not self.settings.whiten_advantages:
            return found
        return Advantages(ops.masked_whiten(found.advantages, rollout.loss_mask), metrics=found.metrics)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return the clipped surrogate of every token."""
        now = policy.evaluate(batch)
        clip = self.settings.clip_range
        losses, clipped = ops.clipped_surrogate(now.logprobs, batch.proximal_logprobs, batch.advantages, clip, clip)
        ratio = (now.logprobs - batch.proximal_logprobs).exp()
        return Loss(losses, {"policy_loss": losses, "clip_fraction": clipped.float(), "ratio": ratio})


class ReinforcePPBaseline(ReinforcePP):
    """REINFORCE++ with the group's mean score as the baseline."""

    def returns(self, rollout: Rollout) -> Advantages:
        """Return each token's return to go minus the mean score of its group, of the answers that were scored."""
        group = ops.split_off(rollout.group, ~rollout.scored)
        centred = super().returns(rollout).advantages - ops.group_means(rollout.scores, group)[:, None]
        return Advantages(centred.masked_fill(~rollout.action_mask, 0))


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register REINFORCE++ and its baseline form."""
    yield OptimizerSpec(
        name="reinforce_pp",
        build=ReinforcePP,
        settings=ReinforcePPSettings,
        summary="REINFORCE++: returns whitened over the global batch, clipped ratio, no critic",
    )
    yield OptimizerSpec(
        name="reinforce_pp_baseline",
        build=ReinforcePPBaseline,
        settings=ReinforcePPSettings,
        needs=Needs(minimum_group_size=2),
        summary="REINFORCE++ with the mean score of the prompt's answers as the baseline",
    )
