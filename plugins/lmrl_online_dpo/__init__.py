"""Online DPO (Guo et al. 2024), as a plugin of lmrl: DPO on pairs of the policy's own fresh answers.

The reward ranks the answers to each prompt, and the best and the worst become a pair. The KL to the reference is in
DPO's loss (``beta``); the trainer's (``[kl]``) shapes rewards, which this optimizer does not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from lmrl import Needs, OptimizerSpec, hookimpl
from lmrl.algorithms import Loss, PairBatch, Policy, PolicyOptimizer, Responses, Rollout
from lmrl.algorithms.preference_losses import PairLossSettings, pair_loss, sequence_logprobs


@dataclass
class OnlineDPOSettings(PairLossSettings):
    """Settings of online DPO."""


class OnlineDPO(PolicyOptimizer):
    """Samples groups, pairs each group's best answer with its worst, and takes DPO's loss of the pairs."""

    Settings = OnlineDPOSettings
    settings: OnlineDPOSettings

    def pairs(self, rollout: Rollout) -> PairBatch:
        """Pair the best with the worst scored answer to each prompt; where they tie, the pair counts for nothing."""
        best, worst, differ = best_and_worst(rollout.scores, rollout.group, rollout.scored)
        return PairBatch.from_rollout(rollout, best, worst, differ)

    def loss(self, policy: Policy, batch: PairBatch) -> Loss:
        """Return the loss of every pair."""
        chosen, rejected = (_log_ratio(policy, side) for side in (batch.chosen, batch.rejected))
        gap, beta = chosen - rejected, self.settings.beta
        metrics = {
            "margin": beta * gap,
            "accuracy": (gap > 0).float(),
            "chosen_reward": beta * chosen,
            "rejected_reward": beta * rejected,
        }
        return Loss(pair_loss(gap, self.settings), metrics)


def best_and_worst(scores: Tensor, group: Tensor, scored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of each group's best and worst score, (G,), and whether the two differ.

    Rows that are not ``scored`` (B,) are skipped.
    """
    member = (group.unique()[:, None] == group[None, :]) & scored[None, :]  # (G, B)
    best = torch.where(member, scores, -inf).argmax(1)
    worst = torch.where(member, scores, inf).argmin(1)
    return best, worst, member.any(1) & (scores[best] > scores[worst])


def _log_ratio(policy: Policy, side: Responses) -> Tensor:
    return sequence_logprobs(policy.evaluate(side).logprobs - side.reference_logprobs, side.action_mask)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register online DPO."""
    yield OptimizerSpec(
        name="online_dpo",
        build=OnlineDPO,
        settings=OnlineDPOSettings,
        needs=Needs(experience="rollouts", minimum_group_size=2, reference=True),
        summary="Online DPO: the best against the worst of fresh answers to each prompt",
        reads_rewards=False,
    )
