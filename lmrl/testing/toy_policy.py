"""A policy of a few hundred parameters that answers in a vocabulary of four: enough for every path of an update.

The distribution of a token depends on the prompt and on the token before. Leaves out text, tokenizers and caches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lmrl.algorithms.beside import REFERENCE, no_such_model
from lmrl.algorithms.ops import entropy, scatter_rows, token_logprobs
from lmrl.algorithms.rollout import UndeclaredNeed
from lmrl.algorithms.sequences import lengths_to_mask, select_record
from lmrl.errors import ModelError, unknown
from lmrl.training.policy import LocalPolicy

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
        self.heads = nn.ModuleDict()
        """Heads of the optimizer under test; they read what the actor's last layer reads."""
        self.sampled_head: Callable[[nn.Linear], nn.Linear] = lambda head: head
        """Returns the layer that answers are drawn with in place of the actor's last one."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the log-probabilities of all actions in these states, (N, V)."""
        logits: Tensor = self.actor(states)
        return logits.log_softmax(-1)

    def drawn(self, states: Tensor) -> Tensor:
        """Return the log-probabilities that answers are drawn with, (N, V)."""
        last = self.actor[-1]
        assert isinstance(last, nn.Linear)
        logits: Tensor = self.sampled_head(last)(self.hidden(states))
        return logits.log_softmax(-1)

    def hidden(self, states: Tensor) -> Tensor:
        """Return what the actor's last layer and the heads read, (N, ``WIDTH``)."""
        hidden: Tensor = self.actor[:-1](states)
        return hidden

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

    def head(self, name: str) -> Tensor:
        """Outputs of one of the optimizer's heads for the actions taken, (..., B, T)."""
        if name not in self.model.heads:
            raise ModelError(unknown("head", name, self.model.heads))
        states, actions = self.inputs.states[self.mask], self.inputs.actions[self.mask]
        return scatter_rows(self.model.heads[name](self.model.hidden(states), actions), self.mask)


class ToyPolicy(LocalPolicy):
    """A ``lmrl.algorithms.optimizer.Policy`` over a ``ToyModel``."""

    def __init__(self, model: ToyModel, with_values: bool = True, others: Mapping[str, ToyModel] | None = None) -> None:
        self.module = model
        self.with_values = with_values
        self.others = others or {}
        self.evaluations = 0
        """Number of evaluations."""

    def evaluate(self, batch: Any) -> ToyEvaluation:
        """Return the current policy on ``batch``."""
        self.evaluations += 1
        return ToyEvaluation(self.module, batch.inputs, batch.action_mask, self.with_values)

    def other(self, name: str) -> ToyPolicy:
        """Return a model beside the policy, whose parameters do not learn."""
        return ToyPolicy(model_of(name, self.others), with_values=False)


def model_of(name: str, others: Mapping[str, ToyModel]) -> ToyModel:
    """Return the model beside the policy of this name."""
    if name not in others and REFERENCE not in others:
        raise UndeclaredNeed(f"the model {name!r} was read, which takes the reference: declare Needs(reference=True)")
    if name not in others:
        raise no_such_model(name, others)
    return others[name]


def make_expert() -> ToyModel:
    """Return a model that nearly always says the token that a prompt asks for: a teacher."""
    model = ToyModel()
    wanted = torch.tensor([wanted_token(state // VOCABULARY) for state in range(PROMPTS * VOCABULARY)])
    table, last = model.actor[0], model.actor[-1]
    assert isinstance(table, nn.Embedding) and isinstance(last, nn.Linear)
    with torch.no_grad():
        table.weight.zero_().scatter_(1, wanted[:, None], 3.0)
        last.weight.zero_().fill_diagonal_(4.0)
        last.bias.zero_()
    return model.requires_grad_(False)


Numbers = TypeVar("Numbers", int, Tensor)


def wanted_token(prompt: Numbers) -> Numbers:
    """Return the token that scores for a prompt, by its number."""
    return 1 + prompt % (VOCABULARY - 1)


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
    wanted = wanted_token(prompts)
    mask = lengths_to_mask(inputs.lengths, inputs.actions.shape[1])
    return ((inputs.actions == wanted[:, None]) & mask).sum(1) / STEPS


def expected_score(model: ToyModel, rows: int = 512) -> float:
    """Return the mean score of sampled answers; the seed is fixed, so that equal models score alike."""
    prompts = torch.arange(rows) % PROMPTS
    inputs, _ = draw(model, prompts, seed=12345)
    return float(score(inputs, prompts).mean())
