"""Reward-ranked fine-tuning (Dong et al. 2023), also called rejection-sampling fine-tuning or expert iteration.

Of every group the answers with the highest scores are imitated: -log pi on their tokens, nothing on the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import Advantages, Batch, Loss, OptimizerSettings, Policy, PolicyOptimizer, Rollout, ops


@dataclass
class RAFTSettings(OptimizerSettings):
    """Settings of RAFT."""

    keep: int = 1
    """Answers to each prompt that are imitated: the best ones."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise SettingsError(f"keep is {self.keep}; expected an integer >= 1")


def best_of_each(scores: Tensor, group: Tensor, candidates: Tensor, keep: int) -> Tensor:
    """Say which rows (B,) are the ``keep`` best candidates of their group; of equal scores the earlier row wins."""
    place = scores.masked_fill(~candidates, -torch.inf).argsort(descending=True, stable=True)
    order = place.argsort()
    ahead = (group[:, None] == group[None, :]) & candidates[None, :] & (order[None, :] < order[:, None])
    return candidates & (ahead.sum(1) < keep)


class RAFT(PolicyOptimizer):
    """Maximum likelihood of the best answers."""

    Settings = RAFTSettings
    settings: RAFTSettings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Mark the tokens of each prompt's best answers with 1; unscored responses are never kept."""
        mask, keep = rollout.action_mask, self.settings.keep
        smallest = int(ops.group_sums(torch.ones_like(rollout.scores), rollout.group)[0].min())
        if keep >= smallest:
            raise SettingsError(
                f"optimizer.raft.keep is {keep}, but there are {smallest} answers to a prompt, and keeping all of them "
                "teaches nothing; raise train.group_size or lower keep"
            )
        kept = best_of_each(rollout.scores, rollout.group, mask.any(1) & rollout.scored, keep)
        # The trainer averages over the rows in the loss; this makes it the mean over the kept ones.
        kept_scores = rollout.scores * kept * rollout.loss_mask.any(1).sum() / kept.sum().clamp_min(1)
        return Advantages((kept[:, None] & mask).to(rollout.rewards), metrics={"kept_score": kept_scores})

    def statistics(self, policy: Policy, batch: Batch) -> Mapping[str, Tensor]:
        """Return what is kept, per token or row as the trainer counts them: its mean is the minibatch's kept share."""
        by_tokens = self.settings.loss_aggregation == "token_mean"
        return {"kept": batch.advantages if by_tokens else batch.advantages.amax(1)}

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return -log pi of the kept tokens over the kept share, so that the trainer's mean is theirs alone."""
        losses = -batch.advantages * policy.evaluate(batch).logprobs / (batch.means["kept"] or 1.0)
        return Loss(losses, {"negative_log_likelihood": losses})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register RAFT."""
    yield OptimizerSpec(
        name="raft",
        build=RAFT,
        settings=RAFTSettings,
        needs=Needs(minimum_group_size=2, importance=False),  # advantages say which answers are kept
        summary="Reward-ranked fine-tuning: imitates the best answers to each prompt",
        reads_rewards=False,
    )
