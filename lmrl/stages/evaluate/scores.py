"""Numbers of sampled answers that need a model: how likely each one is, and how far it lies from a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lmrl.algorithms.sequences import Sequences
from lmrl.engines.protocol import SamplingSpec
from lmrl.models.policy import PolicyModel
from lmrl.models.text_policy import score_logprobs
from lmrl.text.vocabulary import same_tokens

if TYPE_CHECKING:
    from lmrl.models.loading import LanguageModel
    from lmrl.text.card import ModelCard

Rows = Sequence[tuple[Sequence[int], Sequence[int]]]
"""Token ids of prompt and response, row by row."""
CPU_BUDGET, GPU_BUDGET = 2048, 16384
"""Positions per forward pass, padding included; no number depends on it."""


def sequence_logprobs(model: LanguageModel, rows: Rows, temperature: float = 1.0) -> list[float]:
    """Return log p(response | prompt) of every row in nats, summed over the response's tokens, full support.

    Temperature 0, at which a model has no distribution to speak of, is taken for 1.
    """
    if not rows:
        return []
    inputs, budget = Sequences.of_pairs(rows, model.model.device), token_budget(model.model.device)
    spec = SamplingSpec(temperature=temperature or 1.0)
    return [float(row) for row in score_logprobs(PolicyModel(model.model), inputs, spec, budget).double().sum(1)]


def why_no_kl(card: ModelCard, reference: ModelCard, rows: Rows) -> str:
    """Return why a reference cannot score what a model sampled, in words behind the model's name; empty if it can."""
    ids = [[*prompt, *response] for prompt, response in rows]
    if not same_tokens(reference, card, {token for row in ids for token in row}):
        return "has another tokenizer than the reference, so it has no KL to it"
    longest = max(map(len, ids))
    if longest > reference.context_length:
        return f"has rows of {longest} tokens, beyond the reference's {reference.context_length}, so it has no KL to it"
    return ""


def token_budget(device: torch.device) -> int:
    """Return the positions that one forward pass may hold on a device."""
    return CPU_BUDGET if device.type == "cpu" else GPU_BUDGET
