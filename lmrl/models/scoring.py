"""Scoring sampled tokens without gradients: reference log-probabilities and values.

Rows that share a prompt, or are of like length where the model cannot pack, share a forward pass; results come back in
the caller's order. No two scores of a rollout walk one trunk over the same tokens: the reference is a frozen copy, the
values are the policy's or those of a critic's own trunk, and the policy's log-probabilities come from sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmrl.algorithms.ops import scatter_rows
from lmrl.algorithms.rows import lengths_to_mask
from lmrl.algorithms.sequences import Sequences
from lmrl.engines.spec import SamplingSpec
from lmrl.models.pieces import split_packed, split_padded
from lmrl.models.policy import StateOutputs
from lmrl.models.text_policy import TextEvaluation, plain_temperature


@torch.no_grad()
def score_logprobs(module: nn.Module, inputs: Sequences, spec: SamplingSpec, token_budget: int) -> Tensor:
    """Return a model's log-probabilities of the sampled tokens under ``spec``, (B, T)."""
    result = torch.zeros(inputs.count, inputs.width, device=inputs.ids.device)
    for rows in _pieces(module, inputs, token_budget):
        part = inputs.select(rows)
        outputs: StateOutputs = module(part, temperature=plain_temperature(spec))
        result[rows] = TextEvaluation(outputs, part.actions, part.action_mask(inputs.width), spec).logprobs
    return result


@torch.no_grad()
def score_values(module: nn.Module, inputs: Sequences, token_budget: int) -> tuple[Tensor, Tensor]:
    """Return value estimates before each sampled token, (B, T), and at the end of each trajectory, (B,)."""
    width = inputs.width
    states = torch.zeros(inputs.count, width + 1, device=inputs.ids.device)
    for rows in _pieces(module, inputs, token_budget):
        part = inputs.select(rows)
        outputs: StateOutputs = module(part, need_logits=False, need_values=True, include_last=True)
        assert outputs.values is not None
        states[rows] = scatter_rows(outputs.values, lengths_to_mask(part.action_counts + 1, width + 1))
    at_end = states.gather(1, inputs.action_counts[:, None]).squeeze(1)
    before = states[:, :width].masked_fill(~inputs.action_mask(), 0)
    return before, at_end


def _pieces(module: nn.Module, inputs: Sequences, token_budget: int) -> list[Tensor]:
    """Return the trajectories of each forward pass."""
    return (split_packed if getattr(module, "packs", False) else split_padded)(inputs, token_budget)


def reference_spec(spec: SamplingSpec) -> SamplingSpec:
    """Return how the reference is scored: at the sampler's temperature, with its full support."""
    return SamplingSpec(temperature=spec.temperature, max_new_tokens=spec.max_new_tokens)
