"""A small actor and critic on vectors of observations: what a language model and its value head are to text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.algorithms import UndeclaredNeed
from lmrl.algorithms.ops import entropy, scatter_rows, token_logprobs
from lmrl.algorithms.sequences import select_record
from lmrl.training import LocalPolicy


@dataclass(frozen=True)
class ObservationInputs:
    """Observations before each action, (B, T, D), and their actions, (B, T); row i has ``lengths[i]`` of them."""

    observations: Tensor
    actions: Tensor
    lengths: Tensor

    @property
    def row_lengths(self) -> Tensor:
        """States of each row, (B,)."""
        return self.lengths

    def select(self, rows: Tensor) -> ObservationInputs:
        """Return the rows with these indices."""
        return select_record(self, rows)


class ActorCritic(nn.Module):
    """Two networks of tanh layers: logits of every action, and the value of a state."""

    def __init__(self, observations: int, actions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.actor = _network([observations, *hidden, actions], last_gain=0.01)
        self.critic = _network([observations, *hidden, 1], last_gain=0.0)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the logits of every action."""
        logits: Tensor = self.actor(observations)
        return logits

    def values(self, observations: Tensor) -> Tensor:
        """Return the value of every state; 0 at the start."""
        values: Tensor = self.critic(observations)
        return values.squeeze(-1)


@dataclass
class ControlEvaluation:
    """The policy on a batch of episodes; see ``lmrl.algorithms.optimizer.Evaluation``."""

    module: ActorCritic
    inputs: ObservationInputs
    mask: Tensor

    @cached_property
    def _states(self) -> Tensor:
        return self.inputs.observations[self.mask]

    @cached_property
    def _logits(self) -> Tensor:
        logits: Tensor = self.module(self._states)
        return logits

    @cached_property
    def logprobs(self) -> Tensor:
        """Log-probabilities of the actions taken."""
        return scatter_rows(token_logprobs(self._logits, self.inputs.actions[self.mask]), self.mask)

    @cached_property
    def log_distributions(self) -> Tensor:
        """The full distributions, (N, V)."""
        return self._logits.log_softmax(-1)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropies of the full distributions."""
        return scatter_rows(entropy(self.log_distributions), self.mask)

    @cached_property
    def values(self) -> Tensor:
        """Value estimates of the states before each action."""
        return scatter_rows(self.module.values(self._states), self.mask)

    def head(self, name: str) -> Tensor:
        """Raise: an actor-critic has no heads of an optimizer."""
        raise UndeclaredNeed(f"there is no head {name!r} on plain tasks")


class ControlPolicy(LocalPolicy):
    """A ``lmrl.algorithms.optimizer.Policy`` over an ``ActorCritic``."""

    def __init__(self, module: ActorCritic) -> None:
        self.module = module
        self._last: tuple[Any, ControlEvaluation] | None = None

    def evaluate(self, batch: Any) -> ControlEvaluation:
        """Return the current policy on ``batch``."""
        if self._last is None or self._last[0] is not batch:
            self._last = batch, ControlEvaluation(self.module, batch.inputs, batch.action_mask)
        return self._last[1]

    def forget(self) -> None:
        """Drop the last evaluation and its graph, before the parameters change."""
        self._last = None


def _network(widths: Sequence[int], last_gain: float) -> nn.Sequential:
    """Return tanh layers with orthogonal weights (Engstrom et al. 2020, sec. 3: it matters); the last is linear."""
    layers: list[nn.Module] = []
    for place, (wide, narrow) in enumerate(pairwise(widths)):
        last = place == len(widths) - 2
        layer = nn.Linear(wide, narrow)
        nn.init.orthogonal_(layer.weight, last_gain if last else math.sqrt(2))
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def draw_actions(module: ActorCritic, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample an action for every observation, (B, D); return actions and their log-probabilities, (B,)."""
    with torch.no_grad():
        logprobs = module(observations).log_softmax(-1)
    actions = torch.multinomial(logprobs.exp(), 1, generator=generator).squeeze(1)
    return actions, logprobs.gather(1, actions[:, None]).squeeze(1)
