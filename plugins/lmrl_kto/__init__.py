"""Kahneman-Tversky optimization (Ethayarajh et al. 2024), as a plugin of lmrl.

It learns from answers that are good or bad each on its own, against a reference point: how far the policy has moved
from the reference on answers that have nothing to do with their prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import LabelledBatch, Loss, OptimizerSettings, Policy, PolicyOptimizer, Responses
from lmrl.algorithms.preference_losses import kahneman_tversky_loss, sequence_logprobs


@dataclass
class KTOSettings(OptimizerSettings):
    """Settings of KTO."""

    beta: float = 0.1
    """Rate at which an answer's value saturates as its log-ratio leaves the reference point."""
    desirable_weight: float = 1.0
    """Weight of good answers; this times their number should be 1 to 1.5 times the same of bad ones."""
    undesirable_weight: float = 1.0
    """Weight of bad answers."""

    def __post_init__(self) -> None:
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a finite number above 0")


class KTO(PolicyOptimizer):
    """The value of an answer, as prospect theory has it: concave in gains, convex in losses."""

    Settings = KTOSettings
    settings: KTOSettings

    def statistics(self, policy: Policy, batch: LabelledBatch) -> Mapping[str, Tensor]:
        """Return the mismatched answers' log-ratios, whose mean over the whole minibatch is the reference point."""
        return {"mismatched": _log_ratio(policy, batch.mismatched), "desirable": batch.desirable.float()}

    def loss(self, policy: Policy, batch: LabelledBatch) -> Loss:
        """Return the loss of every answer."""
        settings, desirable = self.settings, batch.desirable
        rewards = settings.beta * _log_ratio(policy, batch.responses)
        reference_point = settings.beta * max(0.0, batch.means["mismatched"])
        losses = kahneman_tversky_loss(
            rewards, reference_point, desirable, settings.desirable_weight, settings.undesirable_weight
        )
        share = batch.means["desirable"]  # so that the columns' means over all answers are those of each kind
        metrics = {
            "reference_point": torch.full_like(losses, reference_point),
            "desirable": desirable.float(),
            "desirable_reward": torch.where(desirable, rewards / max(share, 1e-9), 0),
            "undesirable_reward": torch.where(desirable, 0, rewards / max(1 - share, 1e-9)),
            "accuracy": ((rewards > reference_point) == desirable).float(),
        }
        return Loss(losses, metrics)


def _log_ratio(policy: Policy, answers: Responses) -> Tensor:
    return sequence_logprobs(policy.evaluate(answers).logprobs - answers.reference_logprobs, answers.action_mask)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register KTO."""
    yield OptimizerSpec(
        name="kto",
        build=KTO,
        settings=KTOSettings,
        needs=Needs(experience="labelled", reference=True),
        summary="Kahneman-Tversky optimization from answers labelled good or bad",
    )
