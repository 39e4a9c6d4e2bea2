"""Column maths: pure functions over (B, T) tensors, each with its formula's source.

Shared notation: B rows, T steps, V tokens; ``mask`` is the bool action mask; every (B, T) argument is aligned to it.
Leaves out: the KL coefficient and its placement (``lmrl.algorithms.kl``), models, and anything that reads text.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lmrl.algorithms.optimizer import LossAggregation
from lmrl.errors import SettingsError

KLEstimator = Literal["k1", "k2", "k3"]
"""Names of the estimators of ``kl_estimate``."""


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log softmax(logits)[ids], (N,), of ``logits`` (N, V), without a log-softmax of that size."""
    chosen = logits.gather(-1, ids[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """Return -sum p log p over the last dimension of normalised log-probabilities; -inf entries contribute 0."""
    return -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)


def scatter_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """Put a flat (..., N) tensor of masked entries, in row-major order, back into (..., B, T) with 0 elsewhere."""
    result = torch.zeros(*flat.shape[:-1], *mask.shape, dtype=flat.dtype, device=flat.device)
    return result.masked_scatter(mask, flat)


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is half precision or no float, and unchanged otherwise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over masked entries in float32 or more; entries outside the mask, NaN included, have no effect."""
    return at_least_float32(x).masked_fill(~mask, 0).sum()


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


def kl_divergence(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Return KL(p || q) of whole distributions, (N, V) to (N,), without sampling; what p never draws contributes 0."""
    log_ratio = (logprobs - other_logprobs).masked_fill(logprobs == -torch.inf, 0)
    return (logprobs.exp() * log_ratio).sum(-1)


def clipped_surrogate(
    logprobs: Tensor,
    proximal_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return PPO's clipped loss and whether each entry was clipped (Schulman et al. 2017, eq. 7).

    loss = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) with ratio = pi / pi_old. The gradient is 0 exactly
    where A > 0 and ratio > 1 + clip_high, or A < 0 and ratio < 1 - clip_low: there the second term is the smaller one.
    ``dual_clip`` above 1 bounds the loss where A < 0 by -dual_clip A, however large the ratio (Ye et al. 2020, eq. 5);
    0 switches it off.
    """
    ratio = torch.exp(logprobs - proximal_logprobs)
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    unclipped_objective, clipped_objective = ratio * advantages, bounded * advantages
    clipped = clipped_objective < unclipped_objective
    objective = torch.minimum(unclipped_objective, clipped_objective)
    if dual_clip:
        lowest = dual_clip * advantages
        bounded_below = (advantages < 0) & (objective < lowest)
        objective, clipped = torch.where(bounded_below, lowest, objective), clipped | bounded_below
    return -objective, clipped


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return half the squared value error, the worse of the clipped and the unclipped one (PPO, OpenAI baselines).

    ``clip`` bounds how far values may move from ``old_values``; 0 switches clipping off.
    """
    loss = (values - returns) ** 2
    if clip > 0:
        near = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - returns) ** 2)
    return 0.5 * loss


def expectile_loss(values: Tensor, targets: Tensor, tau: float) -> Tensor:
    """Return |tau - 1(u < 0)| u^2 with u = targets - values (Kostrikov et al. 2022, IQL, eq. 3 and 5).

    Its minimum over draws of ``targets`` is their expectile: the mean for ``tau`` 0.5, near the maximum close to 1.
    """
    error = targets - values
    weight = torch.where(error < 0, 1 - tau, tau)
    return weight * error**2


def one_step_targets(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Return r_t + gamma V(s_{t+1}), (B, T), with 0 for what follows a row's last action (IQL, eq. 6).

    s_{t+1} is the state before the row's next action: steps outside the mask are transparent.
    """
    result, following = torch.zeros_like(rewards), torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        acted = mask[:, t]
        result[:, t] = torch.where(acted, rewards[:, t] + gamma * following, 0)
        following = torch.where(acted, values[:, t], following)
    return result


def last_actions(mask: Tensor) -> Tensor:
    """Return the (B, T) bool mask of each row's last action."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def group_sums(x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row the sum of ``x`` (B,) over its group and the group's size, (B,) each.

    Group numbers are arbitrary labels; rows of a group need not be neighbours.
    """
    _, place, counts = group.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=x.dtype, device=x.device).index_add(0, place, x)
    return sums[place], counts[place]


def group_means(x: Tensor, group: Tensor) -> Tensor:
    """Return for each row the mean of ``x`` (B,) over its group."""
    sums, counts = group_sums(x, group)
    return sums / counts


def leave_one_out_means(x: Tensor, group: Tensor, left_out: Tensor | None = None) -> Tensor:
    """Return for each row the mean of ``x`` (B,) over the *others* of its group (Kool et al. 2019, eq. 8).

    Rows ``left_out`` (B,) bool, such as unscored ones, count among nobody's others. They, and rows that have no
    others left, are given their own ``x``: compared with that they are 0. Raises ``ValueError`` for a group of one.
    """
    if bool((group_sums(x, group)[1] < 2).any()):
        raise ValueError("a group of one row has no others to take a mean of; expected at least two samples per prompt")
    sums, counts = group_sums(x, group if left_out is None else split_off(group, left_out))
    return torch.where(counts > 1, (sums - x) / (counts - 1).clamp_min(1), x)


def group_spread(x: Tensor, group: Tensor) -> Tensor:
    """Return for each row the largest minus the smallest ``x`` (B,) of its group: exactly 0 where all are equal."""
    labels, place = group.unique(return_inverse=True)
    empty = x.new_zeros(len(labels))
    highest = empty.scatter_reduce(0, place, x, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, place, x, "amin", include_self=False)
    spread: Tensor = (highest - lowest)[place]
    return spread


def split_off(group: Tensor, rows: Tensor) -> Tensor:
    """Return group numbers (B,) by which each of ``rows`` (B,) bool is alone, and the others are grouped as before.

    For rows that must not be compared, such as unscored ones.
    """
    place = group.unique(return_inverse=True)[1]
    return torch.where(rows, len(group) + torch.arange(len(group), device=group.device), place)


def group_normalise(
    x: Tensor, group: Tensor, divide: bool = True, scores: Tensor | None = None, epsilon: float = 1e-4
) -> Tensor:
    """Return ``x`` (B,) minus its group's mean, divided by its group's sample deviation (Shao et al. 2024, sec. 4.1.2).

    Without ``divide`` it is only centred (Liu et al. 2025, Dr. GRPO). So are groups whose ``scores`` (B,) are all
    equal: what is left in ``x`` there is a KL shaping, perhaps of rounding errors, and dividing by its deviation would
    make it as large as a reward. A group in which ``x`` has no spread gives exactly 0.
    """
    centred = (x - group_means(x, group)).masked_fill(group_spread(x, group) == 0, 0)
    if not divide:
        return centred
    squares, counts = group_sums(centred**2, group)
    deviation = torch.sqrt(squares / (counts - 1).clamp_min(1)) + epsilon
    if scores is not None:
        deviation = deviation.masked_fill(group_spread(scores, group) == 0, 1)
    return centred / deviation


def sequence_log_ratios(logprobs: Tensor, proximal_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return each row's mean log-ratio over its actions, (B,): the log of GSPO's s_i (Zheng et al. 2025, eq. 7)."""
    return (logprobs - proximal_logprobs).masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp_min(1)


def overlong_penalty(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """Return the soft punishment of long answers, (B,) (Yu et al. 2025, DAPO, eq. 13).

    0 up to ``longest - buffer`` tokens, falling to -1 at ``longest`` and staying there.
    """
    return ((longest - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def beta_normalise(x: Tensor, group: Tensor, scores: Tensor) -> Tensor:
    """Return ``x`` (B,) minus its group's mean, divided by a beta density (Xiao et al. 2025, BNPO).

    The density is taken at p, the mean of the group's binary ``scores`` (B,). All groups' p are held for draws of
    Beta(a, b), fitted by their mean and sample variance, and the density is that of Beta(1 + a/3, 1 + b/3), neither
    below 1: the paper shows that it gives the gradient its least variance. As in the authors' code nothing is
    multiplied by more than 1e6. Groups whose scores are all equal (p is 0 or 1) are only centred, and so is everything
    where fewer than two different p make the fit undefined. Raises ``SettingsError`` for scores other than 0 and 1.
    """
    odd = scores[(scores != 0) & (scores != 1)]
    if len(odd):
        raise SettingsError(
            f"there is a score of {float(odd[0]):g}, but BNPO is defined for scores of 0 and 1; choose another "
            "normalisation, or a reward that says right or wrong"
        )
    centred = group_normalise(x, group, divide=False)
    _, place, sizes = group.unique(return_inverse=True, return_counts=True)
    means = group_means(scores.to(x.dtype), group)
    drawn = x.new_zeros(len(sizes)).scatter(0, place, means)[sizes > 1]
    if len(drawn.unique()) < 2:
        return centred
    mean = drawn.mean()
    concentration = (mean * (1 - mean) / drawn.var() - 1).clamp_min(0)
    fitted = torch.distributions.Beta(1 + concentration * mean / 3, 1 + concentration * (1 - mean) / 3)
    undecided = group_spread(scores, group) > 0
    density = fitted.log_prob(means.where(undecided, 0.5)).exp().clamp_min(1e-6)
    weighed: Tensor = centred / density.where(undecided, 1)
    return weighed


def aggregate_losses(
    losses: Tensor, mask: Tensor, aggregation: LossAggregation, token_count: Tensor | float, row_count: Tensor | float
) -> Tensor:
    """Return the scalar that is differentiated: this microbatch's share of the minibatch's mean.

    ``losses`` is (B, T) or (B,). ``token_count`` and ``row_count`` are those of the whole minibatch over all ranks, so
    the shares of its microbatches add up to one number whatever the split. Rows without any action count for nothing.
    """
    if losses.ndim == 1:
        return masked_sum(losses, mask.any(1)) / row_count
    losses = at_least_float32(losses).masked_fill(~mask, 0)
    if aggregation == "token_mean":
        return losses.sum() / token_count
    if aggregation == "sequence_mean":
        return (losses.sum(1) / mask.sum(1).clamp_min(1)).sum() / row_count
    if aggregation == "sequence_sum":
        return losses.sum() / row_count
    raise ValueError(
        f"unknown loss aggregation {aggregation!r}; expected 'token_mean', 'sequence_mean' or 'sequence_sum'"
    )
