"""Action values on a language model's last hidden state, and the policy that is read from them as a plain LM head.

Two linear heads with target copies, as implicit language Q-learning has them (Snell et al. 2023). Because they are
linear, adding them to the logits is adding a matrix to the LM head, so the policy is an ordinary causal LM. Leaves out:
value functions (``lmrl.models.policy``) and losses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.algorithms.ops import token_logprobs
from lmrl.errors import ModelError
from lmrl.models.head import head_is_linear

ACTION_VALUES_FILE = "action_values.safetensors"
PREFIX = "language_model_head."
"""Under this name the file keeps the LM head as it is trained, which the checkpoint itself holds merged."""


@dataclass(frozen=True)
class ActionValues:
    """Both heads on N states and the actions taken there, (2, N) each.

    ``taken`` and, without gradients, ``targets`` are values of the actions; ``logprobs`` are log softmax(Q) of them.
    """

    taken: Tensor
    targets: Tensor
    logprobs: Tensor

    def at(self, places: Tensor) -> ActionValues:
        """Return the states at these places, by index or by mask."""
        return ActionValues(self.taken[:, places], self.targets[:, places], self.logprobs[:, places])


class ActionValueHead(nn.Module):
    """Q(s, a) = level(s) + w_a s, linear in the hidden state s: the level is common to all actions of a state.

    So an action that never occurs keeps the level of its state instead of 0 (Wang et al. 2016). It cancels in softmax.
    """

    def __init__(self, width: int, actions: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.actions = nn.Linear(width, actions, bias=False, device=device)
        self.level = nn.Linear(width, 1, device=device)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)


class ActionValueHeads(nn.Module):
    """Two heads, which start as noise and its opposite so that their mean is 0, and a target copy of each."""

    def __init__(self, width: int, actions: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.heads = nn.ModuleList(ActionValueHead(width, actions, device) for _ in range(2))
        # Equal heads would stay equal: they have the same targets.
        noise = torch.randn(actions, width) * (0.1 / math.sqrt(width))
        with torch.no_grad():
            for head, sign in zip(_each(self.heads), (1, -1), strict=True):
                head.actions.weight.copy_(sign * noise)
        self.targets = copy.deepcopy(self.heads).requires_grad_(False)

    def forward(self, hidden: Tensor, ids: Tensor) -> ActionValues:
        """Return the values of the actions ``ids`` (N,) in the states ``hidden`` (N, width)."""
        taken, logprobs = [], []
        for head in _each(self.heads):
            advantages = head.actions(hidden)
            taken.append(head.level(hidden).squeeze(-1) + advantages.gather(-1, ids[:, None]).squeeze(-1))
            logprobs.append(token_logprobs(advantages, ids))
        with torch.no_grad():
            targets = [
                head.level(hidden).squeeze(-1) + (hidden * head.actions.weight[ids]).sum(-1)
                for head in _each(self.targets)
            ]
        return ActionValues(torch.stack(taken), torch.stack(targets), torch.stack(logprobs))

    @torch.no_grad()
    def move_targets(self, rate: float) -> None:
        """Move every target parameter this share of the way to its head's (Polyak averaging)."""
        for target, parameter in zip(self.targets.parameters(), self.heads.parameters(), strict=True):
            target.lerp_(parameter, rate)

    @torch.no_grad()
    def merged(self, head: nn.Linear, beta: float) -> nn.Linear:
        """Return the LM head whose logits are ``head``'s plus ``beta`` times the mean of both target values.

        Its softmax is proportional to pi_beta(a|s) exp(beta (Q(s, a) - V(s))): what does not depend on the action, V
        and the level, cancels. So it needs no bias that ``head`` does not have.
        """
        mean = torch.stack([target.actions.weight for target in _each(self.targets)]).mean(0)
        merged = copy.deepcopy(head)
        merged.weight = nn.Parameter((head.weight.float() + beta * mean).to(head.weight.dtype), requires_grad=False)
        return merged


def _each(heads: nn.ModuleList) -> list[ActionValueHead]:
    return [head for head in heads if isinstance(head, ActionValueHead)]


def require_linear_head(model: Any) -> nn.Linear:
    """Return the LM head; raises ``ModelError`` where logits are more than a linear map of the last hidden state."""
    head = model.get_output_embeddings()
    if not head_is_linear(model) or not isinstance(head, nn.Linear):
        raise ModelError(
            f"the logits of {model.config.model_type} models are more than a linear head on the last hidden state, so "
            "action values cannot be merged into a checkpoint that transformers loads; choose a model with a plain "
            "head, a Llama, Qwen or GPT-2, say, or another optimizer"
        )
    return head


@contextmanager
def replaced_head(model: Any, head: nn.Linear) -> Iterator[Any]:
    """Let the model have another LM head for a while, which is tied to nothing."""
    own = model.get_output_embeddings()
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    tied = [config.tie_word_embeddings for config in configs]
    model.set_output_embeddings(head)
    for config in configs:
        config.tie_word_embeddings = False
    try:
        yield model
    finally:
        model.set_output_embeddings(own)
        for config, was in zip(configs, tied, strict=True):
            config.tie_word_embeddings = was


def head_state(model: Any) -> dict[str, Tensor]:
    """Return the LM head's tensors by name; without its weight where that is the input embedding's."""
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    return {PREFIX + name: tensor for name, tensor in head.state_dict().items() if not (tied and name == "weight")}


@torch.no_grad()
def restore_head(model: Any, state: Mapping[str, Tensor]) -> None:
    """Give a model with a merged head the one of ``head_state`` back, tied again if it was."""
    head = model.get_output_embeddings()
    own = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    if "weight" not in own:
        head.weight = model.get_input_embeddings().weight
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = True
    head.load_state_dict(own, strict=False)
