"""Odds ratio preference optimization (Hong et al. 2024), as a plugin of lmrl.

Fine-tuning on the chosen answers and a penalty on the odds of the rejected ones, in one loss and without a reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import Loss, OptimizerSettings, PairBatch, Policy, PolicyOptimizer
from lmrl.algorithms.preference_losses import log_odds, sequence_logprobs, sigmoid_loss


@dataclass
class ORPOSettings(OptimizerSettings):
    """Settings of ORPO."""

    odds_coefficient: float = 0.1
    """Weight of the odds ratio's loss, the paper's lambda; fine-tuning on the chosen answers has weight 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.odds_coefficient < float("inf"):
            raise SettingsError(f"odds_coefficient is {self.odds_coefficient}; expected a finite number >= 0")


class ORPO(PolicyOptimizer):
    """Negative log-likelihood of chosen answers, plus the log-sigmoid of the odds ratio."""

    Settings = ORPOSettings
    settings: ORPOSettings

    def loss(self, policy: Policy, batch: PairBatch) -> Loss:
        """Return the loss of every pair."""
        chosen, rejected = (
            sequence_logprobs(policy.evaluate(side).logprobs, side.action_mask, average=True)
            for side in (batch.chosen, batch.rejected)
        )
        ratio = log_odds(chosen) - log_odds(rejected)
        odds_loss = sigmoid_loss(ratio)
        metrics = {
            "nll": -chosen,
            "odds_loss": odds_loss,
            "log_odds_ratio": ratio,
            "accuracy": (ratio > 0).float(),
            "rejected_logprob": rejected,
        }
        return Loss(self.settings.odds_coefficient * odds_loss - chosen, metrics)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register ORPO."""
    yield OptimizerSpec(
        name="orpo",
        build=ORPO,
        settings=ORPOSettings,
        needs=Needs(experience="preferences"),
        summary="Odds ratio preference optimization: fine-tuning and preferences in one loss, without a reference",
    )
