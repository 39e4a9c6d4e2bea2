"""KL penalty: its settings, and its one formula for reward, loss and log.

Objective: E[score] - beta KL(pi || pi_ref) (Stiennon et al. 2020, eq. 2 in the reward; Shao et al. 2024 in the loss).
Notation: B rows, T actions of a row; ``mask`` (B, T) is true on the actions. KL is in nats. The module needs no torch,
so that the environment can use ``shaping_term``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lmrl.config.unread import only_if
from lmrl.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class KLSettings:
    """Settings of the penalty on the KL from the reference model.

    Raises ``SettingsError`` for a ``beta`` that is negative or not finite, and for a ``target`` or ``horizon`` that is
    not positive.
    """

    beta: float = 0.05
    """Coefficient of the penalty; 0 switches it off."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL per token. k1: log-ratio, unbiased; k2: half its square; k3: never negative, unbiased as a
    value. In the loss, k1 is the score-function form, whose expected gradient is that of the KL itself."""
    placement: Literal["reward", "loss"] = "reward"
    """Place of the penalty. reward: subtracted from each token's reward; loss: added to the optimizer's loss."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """Rule for beta over a run. fixed: constant; adaptive: changed so that the KL per sequence stays near `target`."""
    target: float = 6.0
    """Adaptive: the KL per sequence to steer to, in nats."""
    horizon: float = 10000.0
    """Adaptive: episodes over which beta can change by 20% at most."""
    log_reference: Literal["never", "evaluation", "always"] = "evaluation"
    """The KL to the reference is computed for the log alone: never, in evaluations, or in every update too. A
    penalty, or an optimizer that reads the reference, computes it in any case; without either, `never` keeps no
    reference in memory."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise SettingsError(f"kl.beta is {self.beta}; expected a finite number >= 0")
        if self.target <= 0 or self.horizon <= 0:
            raise SettingsError(f"kl.target is {self.target} and kl.horizon {self.horizon}; expected numbers above 0")

    def unread(self) -> dict[str, str]:
        """Return the settings that have no effect, each with the setting that it needs."""
        adaptive = only_if(self.controller == "adaptive", "controller=adaptive", "target", "horizon")
        return adaptive | only_if(self.beta > 0, "beta above 0", "estimator", "placement", "controller")


def shaping_term(logprob: Any, reference_logprob: Any, beta: float) -> Any:
    """Return -beta (log pi - log pi_ref), the penalty of each token in the reward, of floats, arrays or tensors."""
    return -beta * (logprob - reference_logprob)


def shape_rewards(
    scores: Tensor, logprobs: Tensor, reference_logprobs: Tensor | None, mask: Tensor, settings: KLSettings, beta: float
) -> Tensor:
    """Return rewards per token, (B, T): the score on each row's last action, minus the penalty if it is in the reward.

    ``scores`` (B,) is 0 for rows without a score; (B, T) it is the reward of every action. ``logprobs`` (B, T) are
    those of the policy at the start of the update. ``beta`` is the coefficient now, which an adaptive controller
    changes. Without ``reference_logprobs`` (B, T) there is no penalty.
    """
    from lmrl.algorithms.ops import kl_estimate
    from lmrl.algorithms.sequences import at_last_action

    scores = scores.to(logprobs.dtype)
    rewards = scores if scores.ndim == 2 else at_last_action(scores, mask)
    if settings.placement != "reward" or beta == 0 or reference_logprobs is None:
        return rewards
    if settings.estimator == "k1":
        penalty = shaping_term(logprobs, reference_logprobs, beta)
    else:
        penalty = -beta * kl_estimate(logprobs, reference_logprobs, settings.estimator)
    shaped: Tensor = penalty.masked_fill(~mask, 0) + rewards
    return shaped


def kl_losses(
    logprobs: Tensor, proximal_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, settings: KLSettings
) -> Tensor:
    """Return the penalty per token, (B, T), that times beta is added to an optimizer's losses.

    k2 and k3 are differentiated as they are: pathwise through the sampled token's log-probability, which leaves out
    that earlier actions change later states. The gradient of k2 is that of each state's KL; the gradient of k3 is that
    of the KL in the reverse direction. k1 would have gradient 0 in expectation, so it is used in the score-function
    form ratio_t * stop_gradient(sum_{s >= t} (log pi_s - log pi_ref_s)). Its gradient under ``sequence_sum`` is exactly
    that of the sequence's KL, on the first step from ``proximal_logprobs`` (B, T).
    """
    from lmrl.algorithms.ops import kl_estimate, returns_to_go

    if settings.estimator != "k1":
        return kl_estimate(logprobs, reference_logprobs, settings.estimator).masked_fill(~mask, 0)
    to_go = returns_to_go((logprobs - reference_logprobs).detach().masked_fill(~mask, 0), mask)
    return ((logprobs - proximal_logprobs).exp() * to_go).masked_fill(~mask, 0)


class KLController:
    """The coefficient beta over a run: fixed, or proportional control towards a target (Ziegler et al. 2019, sec. 2.2).

    error = clip(KL / target - 1, -0.2, 0.2); beta is multiplied by 1 + error * min(episodes / horizon, 1). A batch
    larger than the horizon counts as one horizon, because more could turn beta negative.
    """

    def __init__(self, settings: KLSettings) -> None:
        self.settings = settings
        self.beta = settings.beta

    def adapt(self, kl_per_sequence: float, episodes: int) -> None:
        """Adapt beta to the KL per sequence, in nats, averaged over the global batch of ``episodes`` rows."""
        if self.settings.controller == "fixed":
            return
        error = min(max(kl_per_sequence / self.settings.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * min(episodes / self.settings.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """Return the coefficient, ``{"beta": ...}``."""
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.beta = float(state["beta"])
