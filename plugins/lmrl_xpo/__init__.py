"""Exploratory preference optimization (Xie et al. 2024), as a plugin of lmrl: online DPO that leaves its reference.

Each response of the policy meets one of the reference. To DPO's loss of the pair comes alpha times the log-likelihood
of the reference's response: minimising it moves probability to responses that the reference does not give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from lmrl import Loss, Needs, OptimizerSpec, PolicyOptimizer, SettingsError, hookimpl
from lmrl.algorithms import PairBatch, Policy, Responses, Rollout
from lmrl.algorithms.preference_losses import PairLossSettings, pair_loss, sequence_logprobs
from lmrl.engines import Request


@dataclass
class XPOSettings(PairLossSettings):
    """Settings of XPO."""

    alpha: float = 1e-5
    """Weight of the exploration bonus; 0 is online DPO against the reference's responses."""
    labels: Literal["soft", "hard"] = "soft"
    """soft: each response is preferred with probability sigmoid(difference of scores), the expectation over labels of
    Bradley and Terry's model; hard: the higher score is preferred, and ties count for nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise SettingsError(f"alpha is {self.alpha}; expected a finite number >= 0")


class XPO(PolicyOptimizer):
    """Pairs every response with one of the reference, and takes DPO's loss with an exploration bonus."""

    Settings = XPOSettings
    settings: XPOSettings

    def further_requests(self, group: Sequence[Request]) -> list[Request]:
        """Ask the reference once."""
        return [replace(group[0], model="reference")]

    def pairs(self, rollout: Rollout) -> PairBatch:
        """Pair each response with the reference's; where one is unscored, the pair counts for nothing."""
        gain = rollout.scores - rollout.further_scores[:, 0]
        hard = self.settings.labels == "hard"
        kept = rollout.scored & ~gain.isnan() & ((gain != 0) if hard else True)
        preference = (gain > 0).float() if hard else gain.nan_to_num().sigmoid()
        return PairBatch.with_further(rollout, kept, {"preference": preference})

    def loss(self, policy: Policy, batch: PairBatch) -> Loss:
        """Return DPO's loss of every pair, and the bonus."""
        own, other = (self._log_ratio(policy, side) for side in (batch.chosen, batch.rejected))
        gap, preference = own - other, batch.chosen["preference"]
        reference_response = sequence_logprobs(policy.evaluate(batch.rejected).logprobs, batch.rejected.action_mask)
        losses = preference * pair_loss(gap, self.settings) + (1 - preference) * pair_loss(-gap, self.settings)
        metrics = {
            "margin": self.settings.beta * gap,
            "accuracy": ((gap > 0) == (preference > 0.5)).float(),
            "preference": preference,
            "reference_response_logprob": reference_response,
        }
        return Loss(losses + self.settings.alpha * reference_response, metrics)

    def _log_ratio(self, policy: Policy, side: Responses) -> Tensor:
        return sequence_logprobs(policy.evaluate(side).logprobs - side.reference_logprobs, side.action_mask)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register XPO."""
    needs = Needs(reference=True)
    yield OptimizerSpec("xpo", XPO, XPOSettings, needs, "Online DPO with an exploration bonus", reads_rewards=False)
