"""A policy of a few hundred parameters that answers in a vocabulary of four: enough for every path of an update.

The distribution of a token depends on the prompt and on the token before. Leaves out text, tokenizers and caches.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.algorithms.ops import entropy, scatter_rows, token_logprobs
from lmrl.algorithms.rollout import UndeclaredNeed
from lmrl.algorithms.rows import lengths_to_mask, select_record

PROMPTS = 4
VOCABULARY = 4
STEPS = 5
WIDTH = 8
END = 0
"""The token that ends an answer."""


@dataclass(frozen=True)
class ToyInputs:
    """The state before each action and the action, both (B, T); row i has ``lengths[i]`` actions, wherever they are."""

    states: Tensor
    actions: Tensor
    lengths: Tensor

    @property
    def row_lengths(self) -> Tensor:
        """Actions of each row, (B,)."""
        return self.lengths

    def select(self, rows: Tensor) -> ToyInputs:
        """Return the rows with these indices."""
        return select_record(self, rows)


class ToyModel(nn.Module):
    """An actor and a critic that share nothing, each a table of states under a linear layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            states = PROMPTS * VOCABULARY
            self.actor = nn.Sequential(nn.Embedding(states, WIDTH), nn.Tanh(), nn.Linear(WIDTH, VOCABULARY))
            self.critic = nn.Sequential(nn.Embedding(states, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
            # Small noise and its opposite, so that their mean is 0.
            noise = 0.1 * torch.randn(states, VOCABULARY)
            self.action_values = nn.ModuleList(nn.Embedding(states, VOCABULARY, _weight=n) for n in (noise, -noise))
            self.targets = copy.deepcopy(self.action_values).requires_grad_(False)
        self.extraction = 0.0
        """What the targets' mean is multiplied with where answers are drawn."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the log-probabilities of all actions in these states, (N, V)."""
        logits: Tensor = self.actor(states)
        return logits.log_softmax(-1)

    def drawn(self, states: Tensor) -> Tensor:
        """Return the log-probabilities that answers are drawn with, (N, V): action values are in them."""
        logits: Tensor = self(states)
        if self.extraction:
            logits = logits + self.extraction * torch.stack([target(states) for target in self.targets]).mean(0)
        return logits.log_softmax(-1)

    def values(self, states: Tensor) -> Tensor:
        """Return the values of these states, of any shape."""
        values: Tensor = self.critic(states)
        return values.squeeze(-1)

    @torch.no_grad()
    def moved(self, scale: float, seed: int) -> ToyModel:
        """Return a copy with noise on every parameter: what the sampling policy is after a few steps."""
        model = ToyModel()
        model.load_state_dict(self.state_dict())
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        return model


@dataclass
class ToyEvaluation:
    """The policy on a batch; see ``lmrl.algorithms.optimizer.Evaluation``."""

    model: ToyModel
    inputs: ToyInputs
    mask: Tensor
    with_values: bool
    with_action_values: bool = False

    @cached_property
    def log_distributions(self) -> Tensor:
        """The full distributions, (N, V)."""
        distributions: Tensor = self.model(self.inputs.states[self.mask])
        return distributions

    @cached_property
    def logprobs(self) -> Tensor:
        """Log-probabilities of the actions taken, (B, T)."""
        return scatter_rows(token_logprobs(self.log_distributions, self.inputs.actions[self.mask]), self.mask)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropies of the full distributions, (B, T)."""
        return scatter_rows(entropy(self.log_distributions), self.mask)

    @cached_property
    def values(self) -> Tensor:
        """Values of the states before each action, (B, T)."""
        if not self.with_values:
            raise UndeclaredNeed("evaluation.values was read; register the optimizer with Needs(values=True)")
        return scatter_rows(self.model.values(self.inputs.states[self.mask]), self.mask)

    @cached_property
    def action_values(self) -> Tensor:
        """Values of the actions by both heads, (2, B, T)."""
        return self._of_actions(self._tables(self.model.action_values))

    @cached_property
    def target_action_values(self) -> Tensor:
        """Values of the actions by both targets, (2, B, T)."""
        return self._of_actions(self._tables(self.model.targets))

    @cached_property
    def action_value_logprobs(self) -> Tensor:
        """Log softmax of both heads at the actions, (2, B, T)."""
        return self._of_actions([table.log_softmax(-1) for table in self._tables(self.model.action_values)])

    def _tables(self, heads: nn.ModuleList) -> list[Tensor]:
        if not self.with_action_values:
            raise UndeclaredNeed("evaluation.action_values was read; register it with Needs(action_values=True)")
        return [head(self.inputs.states[self.mask]) for head in heads]

    def _of_actions(self, tables: list[Tensor]) -> Tensor:
        taken = self.inputs.actions[self.mask][:, None]
        return torch.stack([scatter_rows(table.gather(1, taken).squeeze(1), self.mask) for table in tables])


class ToyPolicy:
    """A ``lmrl.algorithms.optimizer.Policy`` over a ``ToyModel``."""

    def __init__(self, model: ToyModel, with_values: bool = True, with_action_values: bool = True) -> None:
        self.module = model
        self.with_values = with_values
        self.with_action_values = with_action_values
        self.evaluations = 0
        """How often it was asked."""

    def evaluate(self, batch: Any) -> ToyEvaluation:
        """Return the current policy on ``batch``."""
        self.evaluations += 1
        return ToyEvaluation(self.module, batch.inputs, batch.action_mask, self.with_values, self.with_action_values)

    @torch.no_grad()
    def move_targets(self, rate: float) -> None:
        """Move the targets of the action values this share of the way to them."""
        pairs = zip(self.module.targets.parameters(), self.module.action_values.parameters(), strict=True)
        for target, parameter in pairs:
            target.lerp_(parameter, rate)

    def forget(self) -> None:
        """Drop nothing: evaluations are not kept."""


@torch.no_grad()
def draw(model: ToyModel, prompts: Tensor, seed: int) -> tuple[ToyInputs, Tensor]:
    """Sample an answer to every prompt, (B,); return the rows and the log-probabilities of their actions, (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(prompts), STEPS)
    states, actions, logprobs = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.zeros(shape)
    lengths = torch.zeros_like(prompts)
    alive = torch.ones_like(prompts, dtype=torch.bool)
    before = torch.full_like(prompts, END)
    for step in range(STEPS):
        states[:, step] = prompts * VOCABULARY + before
        distribution = model.drawn(states[:, step])
        before = torch.multinomial(distribution.exp(), 1, generator=generator).squeeze(1)
        actions[:, step] = before
        logprobs[:, step] = distribution.gather(1, before[:, None]).squeeze(1)
        lengths += alive
        alive = alive & (before != END)
    mask = lengths_to_mask(lengths, STEPS)
    inputs = ToyInputs(states.masked_fill(~mask, 0), actions.masked_fill(~mask, 0), lengths)
    return inputs, logprobs.masked_fill(~mask, 0)


@torch.no_grad()
def logprobs_of(model: ToyModel, inputs: ToyInputs, mask: Tensor) -> Tensor:
    """Return a model's log-probabilities of the actions, (B, T)."""
    return ToyEvaluation(model, inputs, mask, with_values=False).logprobs


def score(inputs: ToyInputs, prompts: Tensor) -> Tensor:
    """Return the share of the ``STEPS`` possible tokens that are the one the prompt asks for, (B,): 1 at the best."""
    wanted = 1 + prompts % (VOCABULARY - 1)
    mask = lengths_to_mask(inputs.lengths, inputs.actions.shape[1])
    return ((inputs.actions == wanted[:, None]) & mask).sum(1) / STEPS


def expected_score(model: ToyModel, rows: int = 512) -> float:
    """Return the mean score of sampled answers; the seed is fixed, so that equal models score alike."""
    prompts = torch.arange(rows) % PROMPTS
    inputs, _ = draw(model, prompts, seed=12345)
    return float(score(inputs, prompts).mean())
