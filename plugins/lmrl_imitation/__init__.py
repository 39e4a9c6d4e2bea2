"""Imitation of demonstrations or raw text by their negative log-likelihood, as a plugin of lmrl.

Alone it is fine-tuning on answers. As `auxiliary.optimizer.name` beside PPO it is PPO-ptx (Ouyang et al. 2022, eq. 2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmrl import Needs, OptimizerSpec, hookimpl
from lmrl.algorithms import DemonstrationBatch, Loss, OptimizerSettings, Policy, PolicyOptimizer


@dataclass
class ImitationSettings(OptimizerSettings):
    """Settings of imitation."""


class Imitation(PolicyOptimizer):
    """Maximises the likelihood of what somebody wrote."""

    Settings = ImitationSettings

    def loss(self, policy: Policy, batch: DemonstrationBatch) -> Loss:
        """Return the negative log-likelihood of every token, (B, T)."""
        logprobs = policy.evaluate(batch.responses).logprobs
        return Loss(-logprobs, {"logprob": logprobs, "sequence_logprob": logprobs.sum(1)})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register imitation."""
    yield OptimizerSpec(
        name="imitation",
        build=Imitation,
        settings=ImitationSettings,
        needs=Needs(experience="demonstrations"),
        summary="Negative log-likelihood of demonstrations or raw text; with PPO: PPO-ptx",
    )
