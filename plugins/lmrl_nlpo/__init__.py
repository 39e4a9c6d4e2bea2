"""Natural language policy optimization (Ramamurthy et al. 2023), as a plugin of lmrl: PPO over a restricted vocabulary.

In every state the policy draws from the top-p set of a mask policy, an older copy of itself (``lmrl_nlpo.mask``). The
core keeps to these sets in sampling and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import ActorCritic, ActorCriticSettings, Batch, Loss, Policy, ops
from lmrl.engines import SamplingSpec
from lmrl_nlpo.mask import MaskPolicy


@dataclass
class NLPOSettings(ActorCriticSettings):
    """Settings of NLPO."""

    mask_top_p: float = 0.9
    """In each state only the likeliest tokens that make up this much of the mask policy's probability are drawn."""
    mask_update_every: int = 10
    """Updates after which the mask policy becomes a copy of the policy again."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Gradient steps per pass: each rollout is cut into this many minibatches."""
    clip_range: float = 0.2
    """Distance of the ratio pi / pi_old from 1 from which its gradient is cut off."""
    value_clip_range: float = 0.2
    """Distance of a value from its old estimate from which its gradient is cut off; 0 switches it off."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus, of the restricted distributions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_top_p <= 1:
            raise SettingsError(f"mask_top_p is {self.mask_top_p}; expected a number above 0 and up to 1")
        if self.mask_update_every < 1:
            raise SettingsError(f"mask_update_every is {self.mask_update_every}; expected an integer >= 1")
        if not self.clip_range > 0:
            raise SettingsError(f"clip_range is {self.clip_range}; expected a number above 0")


class NLPO(ActorCritic):
    """Clipped policy gradient with a learned value function, within the sets of a mask policy."""

    Settings = NLPOSettings
    settings: NLPOSettings

    def processor(
        self, model: Any, spec: SamplingSpec, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> MaskPolicy:
        """Return the mask policy, a copy of ``model`` at first."""
        return MaskPolicy(model, spec, self.settings.mask_top_p, self.settings.mask_update_every, autocast)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return clipped surrogate + value loss - entropy bonus of every token."""
        settings, now = self.settings, policy.evaluate(batch)
        surrogate, clipped = ops.clipped_surrogate(
            now.logprobs, batch.proximal_logprobs, batch.advantages, settings.clip_range, settings.clip_range
        )
        value_loss = ops.clipped_value_loss(
            now.values, batch["old_values"], batch["returns"], settings.value_clip_range
        )
        losses = surrogate + settings.value_coefficient * value_loss
        if settings.entropy_coefficient:
            losses = losses - settings.entropy_coefficient * now.entropy
        sizes = (now.log_distributions > -torch.inf).sum(-1).float()
        metrics = {
            "policy_loss": surrogate,
            "value_loss": value_loss,
            "clip_fraction": clipped.float(),
            "ratio": (now.logprobs - batch.proximal_logprobs).exp(),
            "approximate_kl": ops.kl_estimate(batch.proximal_logprobs, now.logprobs, "k3"),
            "mask_size": ops.scatter_rows(sizes, batch.action_mask),
        }
        return Loss(losses, metrics)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register NLPO."""
    yield OptimizerSpec(
        name="nlpo",
        build=NLPO,
        settings=NLPOSettings,
        needs=Needs(values=True),
        summary="PPO restricted to what an older copy of the policy finds likely",
    )
