"""Columns about the sampling for rewards that name them: token ids, finish reasons, text with special tokens.

One function for RL, the environment, evaluation, preferences and best-of-n. Nothing is computed that no reward names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmrl.engines.finish import FinishReason
from lmrl.text.responses import continuations

if TYPE_CHECKING:
    from lmrl.text.card import TextCodec


def sampled_columns(
    reward: Any,
    codec: TextCodec,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    finish: Sequence[int],
) -> dict[str, list[Any]]:
    """Return the columns that ``reward`` names, one value per response.

    ``response_ids`` and ``completion_ids`` are the sampled ids, the end token included; ``prompt_ids`` those of the
    prompt. ``finish_reasons`` (given as ``FinishReason`` codes) are eos, stop, length or context. ``raw_responses`` are
    the responses with special tokens and without a cut at a stop string.
    """
    asks: frozenset[str] = getattr(reward, "asks", frozenset())
    found: dict[str, list[Any]] = {}
    for name in ("response_ids", "completion_ids"):
        if name in asks:
            found[name] = [list(row) for row in response_ids]
    if "prompt_ids" in asks:
        found["prompt_ids"] = [list(row) for row in prompt_ids]
    if "finish_reasons" in asks:
        found["finish_reasons"] = [FinishReason(int(code)).label for code in finish]
    if "raw_responses" in asks:
        found["raw_responses"] = continuations(codec, prompt_ids, response_ids, special=True)
    return found
