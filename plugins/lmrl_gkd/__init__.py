"""On-policy distillation, GKD (Agarwal et al. 2024), as a plugin of lmrl: a student learns on its own responses.

The student's distribution in every state of a response is moved to the teacher's; rewards are not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log, log1p

import torch
from torch import Tensor

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import Advantages, Batch, Loss, NamedModel, OptimizerSettings, Policy, PolicyOptimizer, Rollout
from lmrl.algorithms.ops import kl_divergence


@dataclass
class GKDSettings(OptimizerSettings):
    """Settings of GKD."""

    teacher: str = ""
    """Folder or hub id of the teacher; it has the student's vocabulary."""
    beta: float = 0.5
    """0: KL(teacher || student); 1: KL(student || teacher); between: the generalized Jensen-Shannon divergence."""
    top_k: int = 0
    """Compare the teacher's likeliest tokens alone, all others as one; 0 compares all."""

    def __post_init__(self) -> None:
        if not (0 <= self.beta <= 1 and self.top_k >= 0):
            found = f"beta is {self.beta} and top_k {self.top_k}"
            raise SettingsError(f"{found}; expected 0 <= beta <= 1 and top_k >= 0 (0 compares all tokens)")


class GKD(PolicyOptimizer):
    """Moves the student towards the teacher in the states that it visits itself."""

    Settings = GKDSettings
    settings: GKDSettings

    def models(self) -> dict[str, NamedModel]:
        """Return the teacher."""
        return {"teacher": NamedModel(self.settings.teacher, setting="optimizer.gkd.teacher")}

    def advantages(self, rollout: Rollout) -> Advantages:
        """Return zeros: no response is better than another."""
        return Advantages(torch.zeros_like(rollout.rewards))

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return the divergence of every state."""
        return Loss(policy.compare(batch, "teacher", self.divergence))

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence (n,) of log-probabilities (n, V) (Agarwal et al. 2024, sec. 2)."""
        beta, count = self.settings.beta, self.settings.top_k
        if 0 < count < teacher.shape[-1] - 1:
            top = teacher.topk(count)
            student, teacher = with_rest(student.gather(-1, top.indices)), with_rest(top.values)
        if beta == 0:
            return kl_divergence(teacher, student)
        if beta == 1:
            return kl_divergence(student, teacher)
        mixture = torch.logaddexp(teacher + log(beta), student + log1p(-beta))
        return beta * kl_divergence(teacher, mixture) + (1 - beta) * kl_divergence(student, mixture)


def with_rest(logprobs: Tensor) -> Tensor:
    """Return log-probabilities (n, k) with that of all other tokens together behind them, (n, k + 1)."""
    total = logprobs.logsumexp(-1, keepdim=True).clamp_max(-torch.finfo(logprobs.dtype).eps)
    return torch.cat([logprobs, torch.log(-torch.expm1(total))], dim=-1)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register GKD."""
    needs, summary = Needs(scores=False, importance=False), "On-policy distillation of a teacher"
    yield OptimizerSpec("gkd", GKD, GKDSettings, needs, summary, reads_rewards=False)
