"""Pure functions over columns of a batch, each with the source of its formula.

Notation: B rows, T actions of a row, V tokens of the vocabulary, N entries; ``mask`` is a bool tensor of the shape of
the column that it masks. Log-probabilities, entropies and KL are in nats. The KL coefficient and its placement are in
``lmrl.algorithms.kl``.
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
    """Return log softmax(logits)[ids], (N,), of ``logits`` (N, V) and ``ids`` (N,), without the whole log-softmax."""
    chosen = logits.gather(-1, ids[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropy(logprobs: Tensor) -> Tensor:
    """Return -sum p log p, (N,), of normalized log-probabilities (N, V); entries of -inf contribute 0."""
    return -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)


def scatter_rows(flat: Tensor, mask: Tensor) -> Tensor:
    """Return ``flat`` (..., N) as (..., B, T): at the N true places of ``mask`` (B, T), row by row, and 0 elsewhere."""
    result = torch.zeros(*flat.shape[:-1], *mask.shape, dtype=flat.dtype, device=flat.device)
    return result.masked_scatter(mask, flat)


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is half precision or no float, and unchanged otherwise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of masked entries, a scalar of float32 or more; other entries, NaN included, have no effect."""
    return at_least_float32(x).masked_fill(~mask, 0).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the masked entries of ``x``, a scalar of float32 or more; 0 for an empty mask."""
    return masked_sum(x, mask) / mask.sum().clamp_min(1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scale the masked entries of ``x`` to unit (population) variance and, with ``shift_mean``, zero mean.

    The result has the shape of ``x`` and is 0 outside ``mask``. One entry or constant input gives 0 (or the constant,
    without ``shift_mean``), never NaN.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    whitened = (x - mean) * torch.rsqrt(variance + epsilon)
    if not shift_mean:
        whitened = whitened + mean
    return whitened.masked_fill(~mask, 0)


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Return sum_{s >= t} gamma^(s - t) r_s of each row of ``rewards`` (B, T), as (B, T).

    Steps outside ``mask`` are transparent: deleting them changes no return, and they count no discount.
    """
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

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t) and A_t = delta_t + gamma lambda A_{t+1}. ``rewards`` and ``values`` are
    (B, T). After a row's last action V(s_{t+1}) is 0, or ``bootstrap_values`` (B,) where the row was ``truncated``
    (B,). Steps outside ``mask`` (B, T), text that the policy did not sample, are transparent: deleting them changes no
    advantage.
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

    Both arguments and the result have one shape, such as (B, T). With l = log pi - log pi_ref: k1 = l (unbiased), k2 =
    l^2 / 2 (biased, low variance), k3 = exp(-l) - 1 + l (unbiased and never negative). No clamping: a clamp would bias
    k1 and k3. Raises ``ValueError`` for another estimator.
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
    """Return KL(p || q), (N,), of full log-distributions (N, V), without sampling.

    Tokens that p never draws contribute 0. A token that p draws and q does not gives infinity.
    """
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

    Arguments and results have one shape: (B, T), or (B,) for ratios of whole sequences. loss = -min(ratio A,
    clip(ratio, 1 - clip_low, 1 + clip_high) A) with ratio = pi / pi_old. The gradient is 0 exactly where A > 0 and
    ratio > 1 + clip_high, or A < 0 and ratio < 1 - clip_low: there the second term is the smaller one. ``dual_clip``
    above 1 bounds the loss where A < 0 by -dual_clip A, however large the ratio (Ye et al. 2020, eq. 5); 0 switches it
    off.
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

    Arguments and result are (B, T). ``clip`` bounds the difference of values from ``old_values``; 0 switches clipping
    off.
    """
    loss = (values - returns) ** 2
    if clip > 0:
        near = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - returns) ** 2)
    return 0.5 * loss


def expectile_loss(values: Tensor, targets: Tensor, tau: float) -> Tensor:
    """Return |tau - 1(u < 0)| u^2 with u = targets - values (Kostrikov et al. 2022, IQL, eq. 3 and 5).

    Arguments and result have one shape. The minimum over samples of ``targets`` is their expectile: the mean for
    ``tau`` 0.5, near the maximum for ``tau`` close to 1.
    """
    error = targets - values
    weight = torch.where(error < 0, 1 - tau, tau)
    return weight * error**2


def one_step_targets(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Return r_t + gamma V(s_{t+1}), (B, T), of ``rewards`` and ``values`` (B, T) (Kostrikov et al. 2022, IQL, eq. 6).

    V(s_{t+1}) is 0 after a row's last action. s_{t+1} is the state before the row's next action: steps outside ``mask``
    are transparent.
    """
    result, following = torch.zeros_like(rewards), torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        acted = mask[:, t]
        result[:, t] = torch.where(acted, rewards[:, t] + gamma * following, 0)
        following = torch.where(acted, values[:, t], following)
    return result


def last_actions(mask: Tensor) -> Tensor:
    """Return the (B, T) bool mask of each row's last action; rows without actions have none."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def group_sums(x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row the sum of ``x`` (B,) over its group and the group's size, (B,) each.

    ``group`` (B,) holds arbitrary labels; rows of a group need not be neighbors.
    """
    _, place, counts = group.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=x.dtype, device=x.device).index_add(0, place, x)
    return sums[place], counts[place]


def group_means(x: Tensor, group: Tensor) -> Tensor:
    """Return for each row the mean of ``x`` (B,) over its ``group`` (B,), as (B,)."""
    sums, counts = group_sums(x, group)
    return sums / counts


def leave_one_out_means(x: Tensor, group: Tensor, left_out: Tensor | None = None) -> Tensor:
    """Return for each row the mean of ``x`` (B,) over the *other* rows of its group (Kool et al. 2019, eq. 8).

    Rows ``left_out`` (B,) bool, such as unscored ones, are in no other row's mean. These rows, and rows without others,
    get their own ``x``, so that the difference is 0. Raises ``ValueError`` for a group of one.
    """
    if bool((group_sums(x, group)[1] < 2).any()):
        raise ValueError("a group of one row has no others to take a mean of; expected at least two samples per prompt")
    sums, counts = group_sums(x, group if left_out is None else split_off(group, left_out))
    return torch.where(counts > 1, (sums - x) / (counts - 1).clamp_min(1), x)


def group_spread(x: Tensor, group: Tensor) -> Tensor:
    """Return for each row the largest minus the smallest ``x`` (B,) of its group, (B,); exactly 0 if all are equal."""
    labels, place = group.unique(return_inverse=True)
    empty = x.new_zeros(len(labels))
    highest = empty.scatter_reduce(0, place, x, "amax", include_self=False)
    lowest = empty.scatter_reduce(0, place, x, "amin", include_self=False)
    spread: Tensor = (highest - lowest)[place]
    return spread


def split_off(group: Tensor, rows: Tensor) -> Tensor:
    """Return group numbers (B,) in which each of ``rows`` (B,) bool is alone and the others are grouped as before.

    Use it for rows that must not be compared, such as unscored ones.
    """
    place = group.unique(return_inverse=True)[1]
    return torch.where(rows, len(group) + torch.arange(len(group), device=group.device), place)


def group_normalise(
    x: Tensor, group: Tensor, divide: bool = True, scores: Tensor | None = None, epsilon: float = 1e-4
) -> Tensor:
    """Return ``x`` (B,) minus its group's mean, divided by its group's sample deviation (Shao et al. 2024, sec. 4.1.2).

    Without ``divide`` it is only centered (Liu et al. 2025, Dr. GRPO). So are groups whose ``scores`` (B,) are all
    equal: there ``x`` holds only the KL penalty, perhaps rounding errors, and the division would make it as large as a
    reward. A group in which ``x`` has no spread gives exactly 0. ``epsilon`` is added to the deviation.
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
    """Return the soft penalty of long responses, (B,) (Yu et al. 2025, DAPO, eq. 13).

    It is 0 up to ``longest - buffer`` tokens, falls linearly to -1 at ``longest``, and stays there.
    """
    return ((longest - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def beta_normalise(x: Tensor, group: Tensor, scores: Tensor) -> Tensor:
    """Return ``x`` (B,) minus its group's mean, divided by a beta density (Xiao et al. 2025, BNPO).

    The density is taken at p, the mean of the group's binary ``scores`` (B,). The p of all groups are taken for samples
    of Beta(a, b), fitted by their mean and sample variance. The density is that of Beta(1 + a/3, 1 + b/3), neither
    below 1: the paper shows that it gives the gradient its least variance. As in the authors' code the factor is at
    most 1e6. Groups whose scores are all equal (p is 0 or 1) are only centered, and so is everything where fewer than
    two different p make the fit undefined. Raises ``SettingsError`` for scores other than 0 and 1.
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
    """Return the scalar that is differentiated: the part that this microbatch adds to the minibatch's mean.

    ``losses`` is (B, T) or (B,), ``mask`` (B, T). ``token_count`` and ``row_count`` are those of the whole minibatch
    over all ranks, so the parts of its microbatches add up to one number whatever the split. Rows without any action
    are ignored. Raises ``ValueError`` for another aggregation.
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
