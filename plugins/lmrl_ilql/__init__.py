"""Implicit language Q-learning (Snell et al. 2023), as a plugin of lmrl.

It learns from answers that somebody logged with their rewards, without sampling: two action-value heads by one-step
targets, a value as an expectile of them, and a policy that adds their advantages to a cloned one's logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lmrl import Needs, OptimizerSpec, SettingsError, hookimpl
from lmrl.algorithms import (
    Loss,
    OptimizerSettings,
    Policy,
    PolicyOptimizer,
    TrainedParameters,
    TrajectoryBatch,
    ops,
)
from lmrl_ilql.action_values import ActionValueHeads

LARGEST_WEIGHT = 100.0
"""Weights of cloning are cut off here, as IQL's code does."""


@dataclass
class ILQLSettings(OptimizerSettings):
    """Settings of ILQL."""

    minibatches: int = 4
    """Gradient steps per pass: each update's answers are cut into this many minibatches."""
    tau: float = 0.7
    """Expectile of its action values that a state's value is: 0.5 is the mean over the data, near 1 the maximum."""
    alpha: float = 0.01
    """Weight of the conservative term, which lowers the values of actions that the data do not take."""
    beta: float = 10.0
    """Factor of action values where the policy adds them to its logits: a scale in 1 / reward."""
    gamma: float = 1.0
    """Discount per token; below 1 it prefers short ways to a reward."""
    cloning_coefficient: float = 1.0
    """Weight of imitating the data, which keeps the logits that action values are added to."""
    cloning_beta: float = 0.0
    """Above 0, tokens are imitated with the weight exp(cloning_beta (Q - V)) (AWAC); 0 imitates all alike."""
    target_rate: float = 0.1
    """Share of the way that target heads move to their heads after each step; 1 / target_rate steps are remembered."""
    action_value_learning_rate: float = 0.0
    """Peak learning rate of the action-value heads; 0 takes train.value_learning_rate."""

    def __post_init__(self) -> None:
        if not 0 < self.tau < 1:
            raise SettingsError(f"tau is {self.tau}; expected a number between 0 and 1, such as 0.7")
        for name in ("alpha", "beta", "cloning_coefficient", "cloning_beta", "action_value_learning_rate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a finite number >= 0")
        if not 0 <= self.gamma <= 1:
            raise SettingsError(f"gamma is {self.gamma}; expected a number from 0 to 1")
        if not 0 < self.target_rate <= 1:
            raise SettingsError(f"target_rate is {self.target_rate}; expected a number above 0 and at most 1")


class ILQL(PolicyOptimizer):
    """In-sample Q-learning: no action that is missing in the data is ever asked for its value."""

    Settings = ILQLSettings
    settings: ILQLSettings
    action_values: ActionValueHeads

    def heads(self, width: int, actions: int) -> Mapping[str, nn.Module]:
        """Make both action-value heads with their targets."""
        self.action_values = ActionValueHeads(width, actions)
        return {"action_values": self.action_values}

    def parameter_groups(self, heads: Mapping[str, nn.Module]) -> Sequence[TrainedParameters]:
        """Return the action-value heads as a group where they have a learning rate of their own."""
        rate = self.settings.action_value_learning_rate
        trained = [one for one in heads["action_values"].parameters() if one.requires_grad]
        return [TrainedParameters(trained, "value", name="action_values", learning_rate=rate)] if rate else []

    def sampled_head(self, lm_head: nn.Linear) -> nn.Linear:
        """Return the head of pi(a|s) proportional to pi_beta(a|s) exp(beta (Q(s, a) - V(s)))."""
        return self.action_values.merged(lm_head, self.settings.beta)

    def loss(self, policy: Policy, batch: TrajectoryBatch) -> Loss:
        """Return TD error of both heads + expectile loss + alpha conservative term + cloning of every token."""
        settings, now, mask = self.settings, policy.evaluate(batch.responses), batch.action_mask
        action_values, target_values, value_logprobs = now.head("action_values")  # each (2, B, T)
        targets = ops.one_step_targets(batch.rewards, now.values.detach(), mask, settings.gamma)
        # The state after an answer that was cut off is not in the data.
        unknown = ops.last_actions(mask) & ~batch.terminated[:, None]
        td_loss = ((action_values - targets) ** 2).sum(0).masked_fill(unknown, 0)
        lower = target_values.amin(0)
        value_loss = ops.expectile_loss(now.values, lower, settings.tau)
        conservative_loss = -value_logprobs.sum(0)
        advantages = lower - now.values.detach()
        weights = torch.exp(settings.cloning_beta * advantages).clamp_max(LARGEST_WEIGHT)
        cloning_loss = -weights * now.logprobs
        losses = td_loss + value_loss
        losses = losses + settings.alpha * conservative_loss + settings.cloning_coefficient * cloning_loss
        metrics = {
            "td_loss": td_loss,
            "value_loss": value_loss,
            "conservative_loss": conservative_loss,
            "cloning_loss": cloning_loss,
            "action_value": action_values.mean(0),
            "value": now.values,
            "advantage": advantages,
        }
        return Loss(losses, metrics)

    def after_step(self, policy: Policy) -> None:
        """Let the targets follow (Polyak averaging)."""
        self.action_values.move_targets(self.settings.target_rate)


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register ILQL."""
    yield OptimizerSpec(
        name="ilql",
        build=ILQL,
        settings=ILQLSettings,
        needs=Needs(experience="trajectories", values=True),
        summary="Implicit language Q-learning from logged answers with their rewards",
    )
