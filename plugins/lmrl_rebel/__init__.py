"""REBEL (Gao et al. 2024), as a plugin of lmrl: reinforcement learning as a regression to differences of returns.

The policy at the start of the update and the current one give each pair of responses a difference of log-ratios, which
is fitted to the difference of their returns by least squares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import Loss, OptimizerSettings, PairBatch, Policy, PolicyOptimizer, Rollout
from lmrl.algorithms.preference_losses import sequence_logprobs


@dataclass
class REBELSettings(OptimizerSettings):
    """Settings of REBEL."""

    epochs: int = 4
    """Passes over each rollout."""
    eta: float = 1.0
    """Step size of the policy: how far log-ratios move for a difference of 1 in return."""

    def __post_init__(self) -> None:
        if not 0 < self.eta < float("inf"):
            raise SettingsError(f"eta is {self.eta}; expected a finite number above 0")


class REBEL(PolicyOptimizer):
    """Least squares between differences of log-ratios and of returns, over all pairs of responses to a prompt."""

    Settings = REBELSettings
    settings: REBELSettings

    def pairs(self, rollout: Rollout) -> PairBatch:
        """Pair every two responses to a prompt, the one with the higher return first."""
        same = rollout.group[:, None] == rollout.group[None, :]
        first, second = same.triu(1).nonzero().unbind(1)
        returns, kept = rollout.rewards.sum(1), rollout.scored[first] & rollout.scored[second]
        higher = returns[first] >= returns[second]
        chosen, rejected = torch.where(higher, first, second), torch.where(higher, second, first)
        return PairBatch.from_rollout(rollout, chosen, rejected, kept, {"returns": returns})

    def loss(self, policy: Policy, batch: PairBatch) -> Loss:
        """Return the squared error of every pair."""
        chosen, rejected = (
            sequence_logprobs(policy.evaluate(side).logprobs - side["proximal_logprobs"], side.action_mask)
            for side in (batch.chosen, batch.rejected)
        )
        gap, difference = chosen - rejected, batch.chosen["returns"] - batch.rejected["returns"]
        error = gap / self.settings.eta - difference
        return Loss(error**2, {"log_ratio_gap": gap, "return_difference": difference, "residual": error.abs()})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register REBEL."""
    yield OptimizerSpec(
        name="rebel",
        build=REBEL,
        settings=REBELSettings,
        needs=Needs(minimum_group_size=2),
        summary="REBEL: regression of log-ratio differences to return differences, without clipping or a critic",
    )
