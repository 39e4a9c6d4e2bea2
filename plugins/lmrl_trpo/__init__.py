"""Trust region policy optimization (Schulman et al. 2015), as a plugin of lmrl.

A natural gradient step by conjugate gradient on the exact Fisher product, as long as the mean KL from the policy that
sampled allows, shortened by a line search. The value function has a trunk of its own and learns by AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import ActorCritic, ActorCriticSettings, Batch, Loss, Minibatch, Policy, ops
from lmrl_trpo.flat import FlatMinibatch, conjugate_gradient


@dataclass
class TRPOSettings(ActorCriticSettings):
    """Settings of TRPO."""

    epochs: int = 5
    """Passes over each rollout: the policy moves in the first, the value function in all of them."""
    maximum_kl: float = 0.01
    """The largest mean KL from the policy that sampled, in nats per token, of one step."""
    damping: float = 0.1
    """Added to the Fisher matrix's diagonal, so that directions without curvature stay bounded."""
    conjugate_gradient_steps: int = 10
    """Iterations that solve for the natural gradient."""
    line_search_steps: int = 10
    """Steps that are tried at the most, each half as long as the one before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maximum_kl <= 0 or self.damping < 0:
            raise SettingsError(
                f"maximum_kl is {self.maximum_kl} and damping {self.damping}; expected maximum_kl > 0, damping >= 0"
            )
        if self.conjugate_gradient_steps < 1 or self.line_search_steps < 1:
            raise SettingsError("conjugate_gradient_steps and line_search_steps are expected to be at least 1")


class TRPO(ActorCritic):
    """Natural policy gradient within a trust region."""

    Settings = TRPOSettings
    settings: TRPOSettings

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return minus the importance-weighted advantage (eq. 14) plus the value loss of every token."""
        now = policy.evaluate(batch)
        surrogate = -(now.logprobs - batch.proximal_logprobs).exp() * batch.advantages
        value_loss = 0.5 * (now.values - batch["returns"]) ** 2
        losses = surrogate + self.settings.value_coefficient * value_loss
        return Loss(losses, {"policy_loss": surrogate, "value_loss": value_loss})

    def step(self, minibatch: Minibatch) -> Mapping[str, float]:
        """Move along the natural gradient as far as the trust region and the line search allow."""
        if minibatch.epoch > 0:
            return {}
        settings, flat = self.settings, FlatMinibatch(minibatch)
        start = flat.parameters()

        def kl_from_start(policy: Policy, batch: Batch) -> Tensor:
            with flat.at(start):
                old = policy.evaluate(batch).log_distributions
            return ops.scatter_rows(ops.kl_divergence(old, policy.evaluate(batch).log_distributions), batch.action_mask)

        natural, curvature = self._natural_gradient(flat)
        if curvature > 0:
            full = (2 * settings.maximum_kl / curvature) ** 0.5 * natural
            before = flat.loss()
            for halvings in range(settings.line_search_steps):
                flat.assign(start - full / 2**halvings)
                gain, kl = before - flat.loss(), flat.mean(kl_from_start)
                if gain > 0 and kl <= settings.maximum_kl:
                    return {"step_fraction": 0.5**halvings, "step_kl": kl, "surrogate_gain": gain, "step_failed": 0.0}
            flat.assign(start)
        return {"step_fraction": 0.0, "step_kl": 0.0, "surrogate_gain": 0.0, "step_failed": 1.0}

    def _natural_gradient(self, flat: FlatMinibatch) -> tuple[Tensor, float]:
        """Return x of F x = gradient, and x F x."""

        def kl_here(policy: Policy, batch: Batch) -> Tensor:  # 0, with the Fisher matrix as its Hessian
            logprobs = policy.evaluate(batch).log_distributions
            return ops.scatter_rows(ops.kl_divergence(logprobs.detach(), logprobs), batch.action_mask)

        hessian = flat.hessian(kl_here)

        def fisher(vector: Tensor) -> Tensor:
            return hessian(vector) + self.settings.damping * vector

        natural = conjugate_gradient(fisher, flat.gradient, self.settings.conjugate_gradient_steps)
        return natural, float(natural @ fisher(natural))


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register TRPO."""
    yield OptimizerSpec(
        name="trpo",
        build=TRPO,
        settings=TRPOSettings,
        needs=Needs(values="separate"),
        summary="Trust region policy optimization: natural gradient, exact Fisher product, line search",
    )
