"""Losses of rankings: pure functions of scores, each with its source.

Shared notation: ``scores`` (B, N) are a model's scores of the N answers to each of B prompts, ``ranks`` (B, N) say how
good each answer is (0 is best, equal ranks are ties), ``mask`` (B, N) bool is false on padding, which has no effect.
Leaves out: models, and averaging over rankings (the trainer does it, with the count of all ranks).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

TAIL = 20.0
"""Beginning of the quadrature, below the mode: it leaves out a probability of exp(-20), 2e-9."""
STEP = 0.5
"""The quadrature's step for ties of up to four: the trapezoidal rule is then off by about exp(-pi^2 / STEP), 3e-9."""


def bradley_terry(better: Tensor, worse: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Return -log sigmoid(better - worse - margin), elementwise (Bradley and Terry 1952; margin: Llama 2, eq. 2).

    Finite for any finite difference: it grows linearly where the model is wrong and vanishes where it is right.
    """
    return -functional.logsigmoid(better.float() - worse.float() - margin)


def pairwise_bradley_terry(scores: Tensor, ranks: Tensor, mask: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Return the mean Bradley-Terry loss over all pairs that a ranking orders, (B,) (Ouyang et al. 2022, eq. 1).

    Ties are no pairs; a ranking without a pair contributes 0. ``margin`` is a number or (B, N, N), where [b, i, j] is
    by how much answer i should beat answer j.
    """
    ordered = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    scores = scores.masked_fill(~mask, 0)
    losses = bradley_terry(scores[:, :, None], scores[:, None, :], margin)
    return losses.masked_fill(~ordered, 0).sum((1, 2)) / ordered.sum((1, 2)).clamp_min(1)


def centring(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of (r_i + r_j)^2 over the pairs of a ranking's answers, (B,) (Eisenstein et al. 2023, sec. 2).

    Rankings fix scores up to a constant per prompt; this term, times a small coefficient, picks the one around 0.
    With two answers it is the paper's (r_1 + r_2)^2.
    """
    scores = scores.float().masked_fill(~mask, 0)
    pairs = (mask[:, :, None] & mask[:, None, :]).triu(1)
    sums = (scores[:, :, None] + scores[:, None, :]).masked_fill(~pairs, 0)
    return sums.square().sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)


def plackett_luce(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Return the negative log-likelihood of each ranking under Plackett and Luce's model, (B,) (Plackett 1975).

    Answers are drawn one after the other without replacement, each with probability softmax(scores) among those left.
    A tie says that the order of its members is unknown: the likelihood is the sum over all orders of theirs, so the
    members as a set must come before everything that is ranked lower (in survival analysis the exact treatment of
    ties, Kalbfleisch and Prentice 1973). Hence two answers give Bradley-Terry, a complete tie gives 0, a constant added
    to the scores of a row changes nothing, and the answers tied for last place cost nothing among themselves.
    """
    scores = scores.float().masked_fill(~mask, 0)
    levels = torch.arange(scores.shape[1], device=scores.device)[None, :, None]
    dense = _dense(ranks, mask)[:, None, :]
    group = (dense == levels) & mask[:, None, :]
    rest = (dense > levels) & mask[:, None, :]
    counted = group.any(2) & rest.any(2)
    rows = scores[:, None, :].expand(group.shape)[counted]
    group, rest = group[counted], rest[counted]
    below = rows.masked_fill(~rest, -math.inf).logsumexp(1)
    gaps = rows - below[:, None]
    losses = torch.zeros(len(rows), device=scores.device)
    tied = group.sum(1) > 1
    if bool((~tied).any()):
        # One answer above the rest: the softmax among them, log(1 + exp(-gap)).
        losses = losses.masked_scatter(~tied, functional.softplus(-gaps[~tied][group[~tied]]))
    if bool(tied.any()):
        losses = losses.masked_scatter(tied, _set_before_rest(gaps[tied], group[tied]))
    per_level = torch.zeros(counted.shape, device=scores.device).masked_scatter(counted, losses)
    return per_level.sum(1) + 0.0 * scores.sum(1)  # a complete tie has a gradient too: zero


def _set_before_rest(gaps: Tensor, group: Tensor) -> Tensor:
    """Return -log P(all members of ``group`` are drawn before anything below them), (G,), for (G, N) arguments.

    ``gaps`` are scores minus the logsumexp of everything below. With exponential arrival times of rate exp(score) the
    order of arrival is Plackett and Luce's, and with x the log of the time at which the first of the rest arrives,
    measured so that its rate is 1, P = integral of exp(x - e^x) prod_i (1 - exp(-e^(x + gap_i))) dx. The integrand is
    smooth and falls off quickly on both sides, so the trapezoidal rule is exact to the float (see STEP and TAIL), for a
    tie of any size and without the sum over its orders.
    """
    size = gaps.shape[1]
    step = STEP / math.sqrt(max(1.0, size / 4))  # the integrand of a larger tie is narrower, like a Gamma density's log
    x = torch.arange(-TAIL, math.log(size + 1) + 4.0, step, device=gaps.device, dtype=gaps.dtype)
    arrived = _log_one_minus_exp(x[None, :, None] + gaps[:, None, :]).masked_fill(~group[:, None, :], 0).sum(2)
    return -((x - x.exp())[None, :] + arrived).logsumexp(1) - math.log(step)


def _log_one_minus_exp(y: Tensor) -> Tensor:
    """Return log(1 - exp(-e^y)), with finite values and gradients at any y."""
    small = y < -10
    rate = y.masked_fill(small, 0).clamp_max(20).exp()
    return torch.where(small, y - 0.5 * y.clamp_max(0).exp(), torch.log(-torch.expm1(-rate)))


def _dense(ranks: Tensor, mask: Tensor) -> Tensor:
    """Return ranks counted without gaps from 0; padding has its own value, which no caller reads."""
    lower = (ranks[:, None, :] < ranks[:, :, None]) & mask[:, None, :]
    earlier = torch.ones(ranks.shape[1], ranks.shape[1], dtype=torch.bool, device=ranks.device).tril(-1)
    repeated = ((ranks[:, None, :] == ranks[:, :, None]) & mask[:, None, :] & earlier).any(2)
    return (lower & ~repeated[:, None, :]).sum(2)
