"""REINFORCE (Williams 1992) with a running-mean baseline, as a plugin of lmrl.

The return of each token is the reward from it on, KL shaping included; the baseline is an exponential running mean of
the whole episode's return over past batches, so it does not depend on the batch it is applied to and adds no bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmrl import OptimizerSpec, SettingsError, hookimpl
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
class ReinforceSettings(OptimizerSettings):
    """Settings of REINFORCE."""

    loss_aggregation: LossAggregation = "sequence_sum"
    """sequence_sum is the gradient of the expected return itself; the others rescale rows or tokens."""
    baseline_decay: float = 0.9
    """Share of the old running mean that survives each batch; 0 keeps the last batch's mean alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.baseline_decay < 1:
            raise SettingsError(f"baseline_decay is {self.baseline_decay}; expected a number from 0 to below 1")


class Reinforce(PolicyOptimizer):
    """Score-function policy gradient: -(return - baseline) log pi."""

    Settings = ReinforceSettings
    settings: ReinforceSettings

    def __init__(self, settings: ReinforceSettings) -> None:
        super().__init__(settings)
        self.baseline: float | None = None

    def advantages(self, rollout: Rollout) -> Advantages:
        """Subtract the running mean of past batches from each token's return; then move the mean of scored rows."""
        returns = ops.returns_to_go(rollout.rewards, rollout.action_mask)
        # The first batch has no past: its advantages are the plain returns, which is unbiased too.
        baseline = self.baseline if self.baseline is not None else 0.0
        if bool(rollout.scored.any()):
            batch_mean = float(rollout.rewards[rollout.scored].sum(1).mean())
            decay = self.settings.baseline_decay
            self.baseline = batch_mean if self.baseline is None else decay * self.baseline + (1 - decay) * batch_mean
        return Advantages((returns - baseline).masked_fill(~rollout.action_mask, 0))

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return -advantage * log pi of every token."""
        now = policy.evaluate(batch)
        losses = -batch.advantages * now.logprobs
        return Loss(losses, {"policy_loss": losses})

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean."""
        return {"baseline": self.baseline}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the running mean."""
        self.baseline = state["baseline"]


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register REINFORCE."""
    yield OptimizerSpec(
        name="reinforce",
        build=Reinforce,
        settings=ReinforceSettings,
        summary="REINFORCE with a running-mean baseline",
    )
