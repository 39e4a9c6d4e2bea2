"""The distribution that tokens are drawn from, as a pure function of logits; and drawing from it by inverse CDF."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lmrl.engines.spec import SamplingSpec

BLOCK = 64
"""Tokens whose probabilities are first summed when drawing: about the root of a vocabulary."""


def log_distribution(spec: SamplingSpec, logits: Tensor) -> Tensor:
    """Return float32 log-probabilities (..., V) under ``spec``: see ``SamplingSpec.log_distribution``."""
    logits = logits.float()
    if spec.forbidden_ids:
        forbidden = torch.tensor(spec.forbidden_ids, device=logits.device)
        logits = logits.index_fill(-1, forbidden, -math.inf)
    if spec.temperature == 0:
        greedy = torch.full_like(logits, -math.inf)
        return greedy.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    if spec.temperature != 1:
        logits = logits / spec.temperature
    if spec.top_k > 0:
        kth = logits.topk(min(spec.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if spec.top_p < 1:
        logits = _keep_nucleus(logits, spec.top_p)
    if spec.min_p > 0:
        logprobs = logits.log_softmax(-1)
        floor = logprobs.amax(-1, keepdim=True) + math.log(spec.min_p)
        logits = logits.masked_fill(logprobs < floor, -math.inf)
    return logits.log_softmax(-1)


def _keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches ``top_p`` (Holtzman et al. 2020)."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
    before[..., 0] = 0  # the most likely token always stays
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(dropped, -math.inf)


def draw_from_logits(spec: SamplingSpec, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row under ``spec`` and return (ids, log-probabilities), (B,) each.

    ``logits`` (B, V), ``uniforms`` (B,) float64 in [0, 1). The result is that of ``log_distribution`` and ``draw``.
    Where the spec leaves the support as it is, no normalised (B, V) distribution is made: one pass of exponentials,
    whose sums over blocks of tokens say in which block the draw lies, and a cumulative sum over that block alone.
    """
    if spec.filters_support or spec.forbidden_ids or spec.temperature == 0:
        logprobs = log_distribution(spec, logits)
        ids = draw(logprobs, uniforms)
        return ids, logprobs.gather(-1, ids[:, None]).squeeze(-1)
    logits = logits.float()
    if spec.temperature != 1:
        logits = logits / spec.temperature
    probabilities = logits.softmax(-1)
    vocabulary = probabilities.shape[-1]
    padded = torch.nn.functional.pad(probabilities, (0, -vocabulary % BLOCK)) if vocabulary % BLOCK else probabilities
    blocks = padded.view(len(padded), -1, BLOCK)
    cumulative = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    targets = uniforms * cumulative[:, -1]
    block = _search(cumulative, targets)
    before = cumulative.gather(1, (block - 1).clamp_min(0)).masked_fill(block == 0, 0).squeeze(1)
    within = blocks[torch.arange(len(blocks), device=blocks.device), block.squeeze(1)]
    place = _search(within.cumsum(-1, dtype=torch.float64), targets - before)
    ids = (block * BLOCK + place).clamp_max(vocabulary - 1)
    return ids.squeeze(1), probabilities.gather(-1, ids).squeeze(1).log()


def _search(cumulative: Tensor, targets: Tensor) -> Tensor:
    """Return the first place where ``cumulative`` (B, N) exceeds ``targets`` (B,), or the last increase, (B, 1)."""
    total = cumulative[:, -1]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(cumulative, torch.minimum(targets, below_total)[:, None], right=True).clamp_max_(
        cumulative.shape[-1] - 1
    )


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inverse CDF.

    ``logprobs`` (B, V), ``uniforms`` (B,) in [0, 1). Returns (B,) int64. A token of probability 0 is never drawn: the
    first index whose cumulative probability exceeds the uniform has a positive probability of its own.
    """
    # The sum needs double precision where vocabularies are large; its terms have no more than the log-probabilities do.
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    return _search(cumulative, uniforms.double() * cumulative[:, -1]).squeeze(1)
