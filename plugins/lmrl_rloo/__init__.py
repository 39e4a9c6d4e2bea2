"""REINFORCE leave-one-out (Ahmadian et al. 2024; Kool et al. 2019), as a plugin of lmrl.

The whole answer is one action: its return, KL shaping included, minus the mean return of the other answers to the same
prompt. That baseline does not depend on the answer it is subtracted from, so it adds no bias. Unscored responses are
compared with nothing and have no advantage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmrl import Needs, OptimizerSpec, hookimpl
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
class RLOOSettings(OptimizerSettings):
    """Settings of RLOO."""

    loss_aggregation: LossAggregation = "sequence_sum"
    """sequence_sum is the gradient of the expected return itself; the others rescale rows or tokens."""


class RLOO(PolicyOptimizer):
    """Score-function gradient with the other samples of the prompt as the baseline."""

    Settings = RLOOSettings
    settings: RLOOSettings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Subtract from each answer's return the mean of the others of its group."""
        returns = rollout.rewards.sum(1)
        centred = returns - ops.leave_one_out_means(returns, rollout.group, ~rollout.scored)
        return Advantages(centred[:, None] * rollout.action_mask, metrics={"return": returns})

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return -advantage * log pi of every token."""
        losses = -batch.advantages * policy.evaluate(batch).logprobs
        return Loss(losses, {"policy_loss": losses})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register RLOO."""
    yield OptimizerSpec(
        name="rloo",
        build=RLOO,
        settings=RLOOSettings,
        needs=Needs(minimum_group_size=2),
        summary="REINFORCE with the mean of the prompt's other answers as the baseline",
    )
