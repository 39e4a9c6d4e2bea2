"""Reward-ranked fine-tuning (Dong et al. 2023), also called rejection-sampling fine-tuning or expert iteration.

Of every group the answers with the highest scores are imitated: -log pi on their tokens, nothing on the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from lmrl import hookimpl
from lmrl.errors import SettingsError
from lmrl.optimizer import Loss, OptimizerSettings, Policy, PolicyOptimizer
from lmrl.rollout import Advantages, Batch, Rollout
from lmrl.specs import Needs, OptimizerSpec


@dataclass
class RAFTSettings(OptimizerSettings):
    """Settings of RAFT."""

    keep: int = 1
    """How many of each prompt's answers are imitated: the best ones."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise SettingsError(f"keep is {self.keep}; expected an integer >= 1")


def best_of_each(scores: Tensor, group: Tensor, keep: int) -> Tensor:
    """Say which rows (B,) are among the ``keep`` best of their group; of equal scores the earlier row is better."""
    place = scores.argsort(descending=True, stable=True)
    order = place.argsort()
    ahead = (group[:, None] == group[None, :]) & (order[None, :] < order[:, None])
    return ahead.sum(1) < keep


class RAFT(PolicyOptimizer):
    """Maximum likelihood of the best answers."""

    Settings = RAFTSettings
    settings: RAFTSettings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Weigh the tokens of the best answers alike, so that the trainer's mean is the mean over them alone."""
        mask = rollout.action_mask
        kept = best_of_each(rollout.scores, rollout.group, self.settings.keep)
        by_tokens = self.settings.loss_aggregation == "token_mean"
        share = mask[kept].sum() / mask.sum() if by_tokens else kept.float().mean()
        kept_scores = rollout.scores * kept / kept.float().mean()
        return Advantages(kept[:, None] * mask / share, metrics={"kept_score": kept_scores})

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return the weighted negative log-likelihood of every token."""
        losses = -batch.advantages * policy.evaluate(batch).logprobs
        return Loss(losses, {"negative_log_likelihood": losses})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register RAFT."""
    yield OptimizerSpec(
        name="raft",
        build=RAFT,
        settings=RAFTSettings,
        needs=Needs(minimum_group_size=2),
        summary="Reward-ranked fine-tuning: imitates the best answers to each prompt",
    )
