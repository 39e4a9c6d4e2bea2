"""The policy at the start of an update: its log-probabilities of the sampled tokens, and weights that correct for it.

Samples may come from another distribution than the policy that learns from them: an engine in another precision or
layout, or an older policy version. Ratios and clipping compare with the policy at the start of the update
(``proximal_logprobs``); the difference to the sampler is corrected once, by a truncated importance weight on the
advantages (Espeholt et al. 2018, section 4.1; per token as in Yao et al. 2025).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lmrl.algorithms.experience import Responses
from lmrl.algorithms.rollout import Samples


@torch.no_grad()
def proximal_logprobs(policy: Any, samples: Samples, token_budget: int) -> Tensor:
    """Return the policy's log-probabilities of the sampled tokens (B, T), 0 outside the mask.

    ``policy`` is a ``TextPolicy``: rows are evaluated in the layout of the update, with what restricts the tokens.
    """
    responses = Responses(samples.inputs, samples.action_mask)
    found = torch.zeros_like(samples.sampler_logprobs)
    for rows in policy.microbatches(samples, token_budget):
        logprobs = policy.evaluate(responses.select(rows)).logprobs
        found[rows, : logprobs.shape[1]] = logprobs.to(found.dtype)
        policy.forget()
    return found


def importance_weights(
    proximal: Tensor, sampler: Tensor, mask: Tensor, cap: float, level: Literal["token", "sequence"] = "token"
) -> Tensor:
    """Return min(proximal / sampler, ``cap``) per token (B, T), 0 outside the mask; the arguments are logarithms.

    At the level of sequences each token has the ratio of its whole row, the product over its actions. That is unbiased
    without a cap; a token's own ratio leaves out that earlier tokens were drawn from another distribution, too.

    >>> one, two = torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2)
    >>> importance_weights(one, two, torch.ones(1, 2, dtype=torch.bool), cap=2.0).tolist()
    [[1.0, 2.0]]
    """
    log_ratio = proximal - sampler
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
    return log_ratio.exp().clamp_max(cap).masked_fill(~mask, 0)
