"""Direct preference optimization (Rafailov et al. 2023) and SimPO (Meng et al. 2024), as a plugin of lmrl.

Both learn from preference pairs, without sampling and without a reward model. They are two specs, because a spec says
beforehand what is needed: DPO needs the reference's log-probabilities, SimPO does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import Loss, OptimizerSettings, PairBatch, Policy, PolicyOptimizer, Responses
from lmrl.algorithms.preference_losses import PairLossSettings, pair_loss, sequence_logprobs, sigmoid_loss


@dataclass
class DPOSettings(PairLossSettings):
    """Settings of DPO."""

    average_logprobs: bool = False
    """Take log-ratios per token instead of per answer, so that beta does not depend on the length of answers."""


@dataclass
class SimPOSettings(OptimizerSettings):
    """Settings of SimPO."""

    beta: float = 2.0
    """Scale of the log-probabilities per token; larger than DPO's, because they are means."""
    gamma: float = 1.0
    """Margin by which beta times the gap should exceed 0; the paper takes 0.3 to 1.6 with beta between 2 and 2.5."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise SettingsError(f"beta is {self.beta}; expected a finite number above 0")
        if not 0 <= self.gamma < float("inf"):
            raise SettingsError(f"gamma is {self.gamma}; expected a finite number >= 0")


class DPO(PolicyOptimizer):
    """The policy's own log-ratio to the reference, times beta, is the reward that explains the preferences."""

    Settings: ClassVar[type[OptimizerSettings]] = DPOSettings

    def loss(self, policy: Policy, batch: PairBatch) -> Loss:
        """Return the loss of every pair."""
        chosen, rejected = (self.log_ratio(policy, side) for side in (batch.chosen, batch.rejected))
        gap, beta = chosen - rejected, self.settings.beta
        metrics = {
            "margin": beta * gap,
            "accuracy": (gap > 0).float(),
            "chosen_reward": beta * chosen,
            "rejected_reward": beta * rejected,
            "chosen_logprob": policy.evaluate(batch.chosen).logprobs.sum(1),
            "rejected_logprob": policy.evaluate(batch.rejected).logprobs.sum(1),
        }
        return Loss(self.pair_loss(gap), metrics)

    def log_ratio(self, policy: Policy, side: Responses) -> Tensor:
        """Return log pi - log pi_ref of each answer, (P,), per answer or per token."""
        ratio = policy.evaluate(side).logprobs - side.reference_logprobs
        return sequence_logprobs(ratio, side.action_mask, self.settings.average_logprobs)

    def pair_loss(self, gap: Tensor) -> Tensor:
        """Return the loss of a gap between log-ratios, (P,)."""
        return pair_loss(gap, self.settings)


class SimPO(DPO):
    """DPO without a reference: log-probabilities per token take the place of log-ratios, with a margin to exceed."""

    Settings = SimPOSettings

    def log_ratio(self, policy: Policy, side: Responses) -> Tensor:
        """Return log pi of each answer per token, (P,)."""
        return sequence_logprobs(policy.evaluate(side).logprobs, side.action_mask, average=True)

    def pair_loss(self, gap: Tensor) -> Tensor:
        """Return -log sigmoid(beta gap - gamma), (P,) (Meng et al. 2024, eq. 6)."""
        return sigmoid_loss(self.settings.beta * gap - self.settings.gamma)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register DPO and SimPO."""
    yield OptimizerSpec(
        name="dpo",
        build=DPO,
        settings=DPOSettings,
        needs=Needs(experience="preferences", reference=True),
        summary="Direct preference optimization from pairs: sigmoid, IPO, hinge, robust",
    )
    yield OptimizerSpec(
        name="simpo",
        build=SimPO,
        settings=SimPOSettings,
        needs=Needs(experience="preferences"),
        summary="SimPO: preference pairs without a reference, log-probabilities per token",
    )
