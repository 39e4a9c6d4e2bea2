"""End of a response, written once for the environment (numpy, token by token) and the engine (torch, batched).

``finish_codes`` uses only ``|``, ``&``, ``~`` and comparisons, which numpy arrays and torch tensors share.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal

FinishName = Literal["none", "eos", "stop", "length", "context"]


class FinishReason(IntEnum):
    """Why a response ended; ``NONE`` while it goes on."""

    NONE = 0
    EOS = 1
    STOP = 2
    LENGTH = 3
    CONTEXT = 4

    @property
    def label(self) -> str:
        """The lower-case name that ``info["finish_reason"]`` carries."""
        return self.name.lower()


def finish_codes(
    is_eos: Any, hit_stop: Any, new_tokens: Any, prompt_lengths: Any, max_new_tokens: Any, context_length: Any | None
) -> Any:
    """Return the ``FinishReason`` code of every row after its newest token.

    ``is_eos`` and ``hit_stop`` are bool (B,); ``new_tokens`` counts the sampled tokens including the newest,
    ``prompt_lengths`` the prompt's. All are numpy arrays or all torch tensors of integers; the two limits may be
    numbers. An EOS on the last allowed step is an EOS, a stop string comes next, then the token limit, then the full
    context.
    """
    at_length = new_tokens >= max_new_tokens
    at_context = (new_tokens + prompt_lengths) >= (context_length if context_length is not None else 2**62)
    open_after_eos = ~is_eos
    open_after_stop = open_after_eos & ~hit_stop
    open_after_length = open_after_stop & ~at_length
    return (
        is_eos * int(FinishReason.EOS)
        + (open_after_eos & hit_stop) * int(FinishReason.STOP)
        + (open_after_stop & at_length) * int(FinishReason.LENGTH)
        + (open_after_length & at_context) * int(FinishReason.CONTEXT)
    )


def finish_flags(codes: Any, on_length: Literal["terminate", "truncate"]) -> tuple[Any, Any]:
    """Return ``(terminated, truncated)``, bool (B,), of finish codes.

    EOS and stop strings terminate. The token limit and the full context terminate too by default, because value-based
    learners bootstrap whenever ``truncated`` is set and would count the score twice; ``on_length="truncate"`` makes
    them truncations, whose score is withheld.
    """
    ended_itself = (codes == int(FinishReason.EOS)) | (codes == int(FinishReason.STOP))
    cut_off = (codes == int(FinishReason.LENGTH)) | (codes == int(FinishReason.CONTEXT))
    if on_length == "terminate":
        return ended_itself | cut_off, cut_off & ended_itself
    return ended_itself, cut_off
