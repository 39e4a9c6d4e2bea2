"""Check before a run's first optimizer step: the policy gives the log-probabilities that were sampled or stored.

A difference means that the model computes a token differently when it samples, or in another layout of rows, so that
every ratio and KL of the run would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.experience import (
    DemonstrationBatch,
    Experience,
    LabelledBatch,
    PairBatch,
    Responses,
    TrajectoryBatch,
)
from lmrl.algorithms.rollout import Samples
from lmrl.errors import ModelError
from lmrl.models.text_policy import TextPolicy, reference_spec

INEXACT = 0.1
TOLERANCE = {"no": 1e-3, "bf16": INEXACT, "fp16": INEXACT}
"""Largest mean |log ratio| per token, in nats, by autocast precision."""
ROWS = 8
"""Responses of the data that are evaluated for the check."""


@torch.no_grad()
def check_samples(samples: Samples, policies: Sequence[TextPolicy], accelerator: Any, exact: bool) -> None:
    """Raise ``ModelError`` if sampled tokens' log-probabilities differ from those that a policy evaluates.

    ``policies`` are the policy itself, and its frozen copy where it has not learned yet. An engine that is not
    ``exact`` may differ by as much as lower precision does.
    """
    cause = (
        "A state outside the cache, positions that depend on padding, or dropout are likely causes; so is an engine "
        "that samples from other weights"
    )
    tolerance = TOLERANCE.get(str(accelerator.mixed_precision), INEXACT) if exact else INEXACT
    few = samples.select(torch.arange(min(ROWS, len(samples.action_mask)), device=samples.action_mask.device)).narrow()
    for policy in policies:
        now = policy.evaluate(Responses(few.inputs, few.action_mask)).logprobs
        policy.forget()
        model = policy.model.model
        _check("while it samples", few.sampler_logprobs, now, few.action_mask, accelerator, model, cause, tolerance)


@torch.no_grad()
def check_data(batch: Experience, policy: Any, accelerator: Any, model: Any) -> None:
    """Raise ``ModelError`` if the policy's log-probabilities of data differ from the stored ones of its frozen copy."""
    responses = _responses(batch)
    if responses is None or "reference_logprobs" not in responses.declared:
        return
    few = responses.select(torch.arange(min(ROWS, len(responses)), device=responses.action_mask.device))
    with accelerator.autocast():  # over the whole vocabulary, as the stored ones, also where the sampler forbids tokens
        now = TextPolicy(policy.module, reference_spec(policy.spec), with_values=False).evaluate(few).logprobs
    cause = "A state that is kept in the model between forward passes, or dropout, are likely causes"
    tolerance = TOLERANCE.get(str(accelerator.mixed_precision), INEXACT)
    _check("on the data", now, few.reference_logprobs, few.action_mask, accelerator, model, cause, tolerance)


def _responses(batch: Experience) -> Responses | None:
    if isinstance(batch, PairBatch):
        return batch.chosen
    return batch.responses if isinstance(batch, DemonstrationBatch | LabelledBatch | TrajectoryBatch) else None


def _check(
    where: str,
    found: Tensor,
    expected: Tensor,
    mask: Tensor,
    accelerator: Any,
    model: Any,
    cause: str,
    tolerance: float,
) -> None:
    differences = (found.float() - expected.float()).abs().masked_fill(~mask, 0).sum()
    total, count = accelerator.reduce(torch.stack([differences, mask.sum().to(differences)]), reduction="sum").tolist()
    mean = total / max(count, 1)
    if mean > tolerance:
        raise ModelError(
            f"update 1: the log-probabilities of {type(model).__name__} {where} differ from those of its own forward "
            f"pass, or of its frozen copy, by {mean:.3g} nats per token on average; expected at most {tolerance:g}, "
            f"because no optimizer step was taken yet. {cause}. Train a model of another family or with another "
            "engine.name."
        )
