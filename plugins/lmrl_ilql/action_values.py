"""Action values on a language model's last hidden state, and the policy that is read from them as a plain LM head.

Two linear heads with target copies (Snell et al. 2023). Because they are linear, adding them to the logits is adding a
matrix to the LM head, so the policy is an ordinary causal LM. Leaves out: value functions and losses.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from lmrl.algorithms import ops


class ActionValueHead(nn.Module):
    """Q(s, a) = level(s) + w_a s, linear in the hidden state s: the level is common to all actions of a state.

    So an action that never occurs keeps the level of its state instead of 0 (Wang et al. 2016). It cancels in softmax.
    """

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.actions = nn.Linear(width, actions, bias=False)
        self.level = nn.Linear(width, 1)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)


class ActionValueHeads(nn.Module):
    """Two heads, which start as noise and its opposite so that their mean is 0, and a target copy of each."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(ActionValueHead(width, actions) for _ in range(2))
        # Equal heads would stay equal: they have the same targets.
        noise = torch.randn(actions, width) * (0.1 / math.sqrt(width))
        with torch.no_grad():
            for head, sign in zip(_each(self.heads), (1, -1), strict=True):
                head.actions.weight.copy_(sign * noise)
        self.targets = copy.deepcopy(self.heads).requires_grad_(False)

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return (3, 2, N) of the actions ``ids`` (N,) in the states ``hidden`` (N, width).

        The three are values, target values, without gradients, and log softmax(Q), each of both heads.
        """
        taken, logprobs = [], []
        for head in _each(self.heads):
            advantages = head.actions(hidden)
            taken.append(head.level(hidden).squeeze(-1) + advantages.gather(-1, ids[:, None]).squeeze(-1))
            logprobs.append(ops.token_logprobs(advantages, ids))
        with torch.no_grad():
            targets = [
                head.level(hidden).squeeze(-1) + (hidden * head.actions.weight[ids]).sum(-1)
                for head in _each(self.targets)
            ]
        return torch.stack([torch.stack(both) for both in (taken, targets, logprobs)])

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
