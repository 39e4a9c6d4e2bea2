"""Advantage actor-critic (Mnih et al. 2016, the synchronous form), as a plugin of lmrl.

One gradient step per rollout on -A log pi, a squared value error and an entropy bonus.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmrl import Needs, OptimizerSpec, hookimpl
from lmrl.algorithms import ActorCritic, ActorCriticSettings, Batch, Loss, Policy


@dataclass
class A2CSettings(ActorCriticSettings):
    """Settings of A2C."""

    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    gae_lambda: float = 1.0
    """Lambda of the generalized advantage estimate: 1 is the return minus the value, 0 is one-step TD."""
    whiten_advantages: bool = False
    """Scale advantages to zero mean and unit variance over the global batch."""


class A2C(ActorCritic):
    """Policy gradient with a learned value function, one step per rollout."""

    Settings = A2CSettings
    settings: A2CSettings

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return -A log pi + value loss - entropy bonus of every token."""
        now = policy.evaluate(batch)
        policy_loss, value_loss = -batch.advantages * now.logprobs, 0.5 * (now.values - batch["returns"]) ** 2
        losses = policy_loss + self.settings.value_coefficient * value_loss
        if self.settings.entropy_coefficient:
            losses = losses - self.settings.entropy_coefficient * now.entropy
        return Loss(losses, {"policy_loss": policy_loss, "value_loss": value_loss})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register A2C."""
    yield OptimizerSpec(
        name="a2c",
        build=A2C,
        settings=A2CSettings,
        needs=Needs(values=True),
        summary="Advantage actor-critic: policy gradient and value function, one step per rollout",
    )
