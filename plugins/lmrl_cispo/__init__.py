"""Clipped importance-sampling policy optimization (MiniMax 2025, the M1 report), as a plugin of lmrl.

PPO drops the gradient of a token whose ratio is clipped; CISPO clips the *weight* and detaches it, so every token keeps
a gradient: -stop_gradient(min(ratio, bound)) A log pi.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import Advantages, Batch, Loss, OptimizerSettings, Policy, PolicyOptimizer, Rollout, ops


@dataclass
class CISPOSettings(OptimizerSettings):
    """Settings of CISPO; token_mean is the paper's average."""

    weight_bound: float = 5.0
    """The largest importance weight."""
    weight_floor: float = 0.0
    """The smallest one; 0, as in the paper, leaves small ratios as they are."""
    normalise_std: bool = True
    """Divide by the group's deviation, as GRPO does."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight_floor <= 1 <= self.weight_bound:
            raise SettingsError(
                f"weight_floor is {self.weight_floor} and weight_bound {self.weight_bound}; expected a floor from 0 to "
                "1 and a bound of 1 or more"
            )


class CISPO(PolicyOptimizer):
    """Importance-weighted policy gradient with bounded, detached weights."""

    Settings = CISPOSettings
    settings: CISPOSettings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Normalise each answer's return, KL shaping included, within its group."""
        returns, group = rollout.rewards.sum(1), ops.split_off(rollout.group, ~rollout.scored)
        normalised = ops.group_normalise(returns, group, self.settings.normalise_std, rollout.scores)
        metrics = {"return": returns, "tied": (ops.group_spread(rollout.scores, group) == 0).float()}
        return Advantages(normalised[:, None] * rollout.action_mask, metrics=metrics)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return -weight * advantage * log pi of every token."""
        logprobs = policy.evaluate(batch).logprobs
        ratio = (logprobs - batch.proximal_logprobs).exp().detach()
        weight = ratio.clamp(self.settings.weight_floor, self.settings.weight_bound)
        losses = -weight * batch.advantages * logprobs
        metrics = {
            "policy_loss": losses,
            "ratio": ratio,
            "clip_fraction": (weight != ratio).float(),
            "approximate_kl": ops.kl_estimate(batch.proximal_logprobs, logprobs, "k3"),
        }
        return Loss(losses, metrics)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register CISPO."""
    yield OptimizerSpec(
        name="cispo",
        build=CISPO,
        settings=CISPOSettings,
        needs=Needs(minimum_group_size=2),
        summary="Clipped importance-sampling weights that keep every token's gradient",
    )
