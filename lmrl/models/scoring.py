"""Scoring sampled responses without gradients: reference log-probabilities and values.

Rows that share a prompt, or are of like length where the model cannot pack, share a forward pass; results come back in
the caller's order. No two scores of a rollout walk one trunk over the same tokens: the reference is a frozen copy, the
values are the policy's or those of a critic's own trunk, and the policy's log-probabilities come from sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmrl.algorithms.ops import scatter_rows
from lmrl.algorithms.rollout import TextInputs
from lmrl.algorithms.rows import lengths_to_mask, split_by_length, split_by_prompt
from lmrl.engines.spec import SamplingSpec
from lmrl.models.policy import StateOutputs
from lmrl.models.text_policy import TextEvaluation, plain_temperature


@torch.no_grad()
def score_logprobs(module: nn.Module, inputs: TextInputs, spec: SamplingSpec, token_budget: int) -> Tensor:
    """Return a model's log-probabilities of the response tokens under ``spec``, (B, T)."""
    result = torch.zeros(inputs.response_ids.shape, device=inputs.response_ids.device)
    for rows in _pieces(module, inputs, token_budget):
        part = inputs.select(rows)
        mask = lengths_to_mask(part.response_lengths, part.response_ids.shape[1])
        outputs: StateOutputs = module(part, temperature=plain_temperature(spec))
        result[rows] = TextEvaluation(outputs, part.response_ids[mask], mask, spec).logprobs
    return result


@torch.no_grad()
def score_values(module: nn.Module, inputs: TextInputs, token_budget: int) -> tuple[Tensor, Tensor]:
    """Return value estimates before each response token, (B, T), and after the last one, (B,)."""
    width = inputs.response_ids.shape[1]
    states = torch.zeros(len(inputs.response_ids), width + 1, device=inputs.response_ids.device)
    for rows in _pieces(module, inputs, token_budget):
        part = inputs.select(rows)
        outputs: StateOutputs = module(part, need_logits=False, need_values=True, include_last=True)
        assert outputs.values is not None
        states[rows] = scatter_rows(outputs.values, lengths_to_mask(part.response_lengths + 1, width + 1))
    after_last = states.gather(1, inputs.response_lengths[:, None]).squeeze(1)
    before = states[:, :width].masked_fill(~lengths_to_mask(inputs.response_lengths, width), 0)
    return before, after_last


def _pieces(module: nn.Module, inputs: TextInputs, token_budget: int) -> list[Tensor]:
    """Return the rows of each forward pass."""
    if getattr(module, "packs", False):
        return split_by_prompt(inputs, token_budget)
    return split_by_length(inputs.row_lengths, token_budget)


def reference_spec(spec: SamplingSpec) -> SamplingSpec:
    """Return how the reference is scored: at the sampler's temperature, with its full support."""
    return SamplingSpec(temperature=spec.temperature, max_new_tokens=spec.max_new_tokens)
