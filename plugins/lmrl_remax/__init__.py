"""ReMax (Li et al. 2024), as a plugin of lmrl: REINFORCE with the score of the greedy answer as the baseline.

The greedy answer is decoded beside the sampled ones and never trained on. Its score does not depend on the sampled
answer, so it adds no bias; no value function and no group is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lmrl import OptimizerSpec, hookimpl
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
from lmrl.engines import Request


@dataclass
class ReMaxSettings(OptimizerSettings):
    """Settings of ReMax."""

    loss_aggregation: LossAggregation = "sequence_sum"
    """sequence_sum is the gradient of the expected return itself; the others rescale rows or tokens."""


class ReMax(PolicyOptimizer):
    """Score-function gradient with a greedy baseline."""

    Settings = ReMaxSettings
    settings: ReMaxSettings

    def further_requests(self, group: Sequence[Request]) -> list[Request]:
        """Return the request for the greedy answer."""
        return [replace(group[0], spec=replace(group[0].spec, temperature=0.0))]

    def advantages(self, rollout: Rollout) -> Advantages:
        """Subtract the greedy answer's score from each token's return."""
        returns = ops.returns_to_go(rollout.rewards, rollout.action_mask)
        # Where the greedy answer has no score, the mean of those of the batch: it depends on no sampled answer either.
        greedy = rollout.further_scores[:, 0]
        known = ~greedy.isnan()
        baseline = greedy.where(known, ops.masked_mean(greedy, known))
        centred = (returns - baseline[:, None]).masked_fill(~rollout.action_mask, 0)
        return Advantages(centred, metrics={"greedy_score": baseline})

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return -advantage * log pi of every token."""
        losses = -batch.advantages * policy.evaluate(batch).logprobs
        return Loss(losses, {"policy_loss": losses})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register ReMax."""
    yield OptimizerSpec(
        name="remax",
        build=ReMax,
        settings=ReMaxSettings,
        summary="REINFORCE with the score of the greedy answer as the baseline",
    )
