"""Column maths: pure functions over (B, T) tensors, each with its formula's source.

Shared notation: B rows, T steps, V tokens; ``mask`` is the bool action mask; every (B, T) argument is aligned to it.
Leaves out: the KL coefficient and its placement (``lmrl.kl``), models, and anything that reads text.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lmrl.optimizer import LossAggregation

KLEstimator = Literal["k1", "k2", "k3"]


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log softmax(logits)[ids], (N,), of ``logits`` (N, V), without a log-softmax of that size."""
    chosen = logits.gather(-1, ids[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """Return -sum p log p over the last dimension of normalised log-probabilities; -inf entries contribute 0."""
    return -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)


def scatter_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """Put a flat (N,) tensor of masked entries, in row-major order, back into (B, T) with 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over masked entries; what stands outside the mask, NaN included, has no effect."""
    return x.masked_fill(~mask, 0).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over masked entries, 0 for an empty mask."""
    return masked_sum(x, mask) / mask.sum().clamp_min(1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scale masked entries to unit (population) variance and, with ``shift_mean``, zero mean; 0 outside the mask.

    One entry or constant input gives 0 (or the constant, without ``shift_mean``), never NaN.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    whitened = (x - mean) * torch.rsqrt(variance + epsilon)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0)


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Return sum_{s >= t} gamma^(s - t) r_s per row, (B, T); steps outside the mask are transparent."""
    result = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        acted = mask[:, t]
        running = torch.where(acted, rewards[:, t] + gamma * running, running)
        result[:, t] = torch.where(acted, running, 0)
    return result


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    bootstrap_values: Tensor,
    mask: Tensor,
    truncated: Tensor,
    gamma: float = 1.0,
    lambda_: float = 0.95,
) -> Tensor:
    """Return generalized advantage estimates, (B, T) (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t) and A_t = delta_t + gamma lambda A_{t+1}. After a row's last action
    V(s_{t+1}) is 0, or ``bootstrap_values`` (B,) where the row was ``truncated`` (B,). Steps outside the mask (text
    that the policy did not sample) are transparent: deleting them changes no advantage.
    """
    advantages = torch.zeros_like(rewards)
    next_value = torch.where(truncated, bootstrap_values, torch.zeros_like(bootstrap_values))
    running = torch.zeros_like(next_value)
    for t in reversed(range(rewards.shape[1])):
        acted = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(acted, delta + gamma * lambda_ * running, running)
        next_value = torch.where(acted, values[:, t], next_value)
        advantages[:, t] = torch.where(acted, running, 0)
    return advantages


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(pi || pi_ref) per token from samples of pi (Schulman 2020, "Approximating KL divergence").

    With l = log pi - log pi_ref: k1 = l (unbiased), k2 = l^2 / 2 (biased, low variance), k3 = exp(-l) - 1 + l
    (unbiased and never negative). No clamping: a clamp would bias k1 and k3.
    """
    log_ratio = logprobs - reference_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"unknown KL estimator {estimator!r}; expected 'k1', 'k2' or 'k3'")


def clipped_surrogate(
    logprobs: Tensor, behavior_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return PPO's clipped loss and whether each entry was clipped (Schulman et al. 2017, eq. 7).

    loss = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) with ratio = pi / pi_old. The gradient is 0 exactly
    where A > 0 and ratio > 1 + clip_high, or A < 0 and ratio < 1 - clip_low: there the second term is the smaller one.
    """
    ratio = torch.exp(logprobs - behavior_logprobs)
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    unclipped_objective, clipped_objective = ratio * advantages, bounded * advantages
    clipped = clipped_objective < unclipped_objective
    return -torch.minimum(unclipped_objective, clipped_objective), clipped


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return half the squared value error, the worse of the clipped and the unclipped one (PPO, OpenAI baselines).

    ``clip`` bounds how far values may move from ``old_values``; 0 switches clipping off.
    """
    loss = (values - returns) ** 2
    if clip > 0:
        near = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - returns) ** 2)
    return 0.5 * loss


def aggregate_losses(
    losses: Tensor, mask: Tensor, aggregation: LossAggregation, token_count: Tensor | float, row_count: Tensor | float
) -> Tensor:
    """Return the scalar that is differentiated: this microbatch's share of the minibatch's mean.

    ``losses`` is (B, T) or (B,). ``token_count`` and ``row_count`` are those of the whole minibatch over all ranks, so
    the shares of its microbatches add up to one number whatever the split. Rows without any action count for nothing.
    """
    if losses.ndim == 1:
        return masked_sum(losses, mask.any(1)) / row_count
    losses = losses.masked_fill(~mask, 0)
    if aggregation == "token_mean":
        return losses.sum() / token_count
    if aggregation == "sequence_mean":
        return (losses.sum(1) / mask.sum(1).clamp_min(1)).sum() / row_count
    if aggregation == "sequence_sum":
        return losses.sum() / row_count
    raise ValueError(
        f"unknown loss aggregation {aggregation!r}; expected 'token_mean', 'sequence_mean' or 'sequence_sum'"
    )
