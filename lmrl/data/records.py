"""Records made of rows: a conversation or completion to imitate, and answers to one prompt in order of preference.

Plain frozen records without torch. ``lmrl.data.load_examples`` and ``lmrl.data.load_rankings`` make them of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lmrl.errors import DataError

Message: TypeAlias = Mapping[str, Any]
"""``{"role": "system" | "user" | "assistant" | "tool", "content": text}``, and further keys for the chat template."""
Prompt: TypeAlias = str | tuple[Message, ...]
"""Plain text to continue, or a conversation that ends before the answer."""
Answer: TypeAlias = str | tuple[Message, ...]
"""The text of an answer; messages only where what follows the prompt has several turns."""


@dataclass(frozen=True)
class ChatExample:
    """A conversation to imitate: the loss is on every assistant message."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class CompletionExample:
    """A text to continue: the loss is on the completion."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Ranking:
    """N answers to one prompt, in order of preference. Raises ``DataError`` when the numbers do not fit together.

    ``ranks`` are dense from 0, the best; answers that tie share one. ``scores`` are what the ranks came from, higher
    is better, or empty where nobody gave any. ``columns`` are the other columns of the row.
    """

    prompt: Prompt
    completions: tuple[Answer, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.completions) < 2 or len(self.ranks) != len(self.completions):
            raise DataError(
                f"a ranking of {len(self.completions)} completions with {len(self.ranks)} ranks; expected at least two "
                "completions, and a rank for each."
            )
        if self.scores and len(self.scores) != len(self.completions):
            raise DataError(
                f"{len(self.scores)} scores for {len(self.completions)} completions; expected one for each."
            )
        if set(self.ranks) != set(range(max(self.ranks) + 1)):
            raise DataError(
                f"the ranks {self.ranks} are not dense; expected 0, 1, ... without a gap (see dense_ranks)."
            )

    def pairs(self) -> list[tuple[int, int]]:
        """Return (better, worse) index pairs of the completions; ties make none."""
        places = range(len(self.ranks))
        return [(better, worse) for better in places for worse in places if self.ranks[better] < self.ranks[worse]]


def dense_ranks(values: tuple[float, ...], best: str = "lowest") -> tuple[int, ...]:
    """Return ranks from 0 without gaps, ties sharing one; ``best`` is "lowest" (ranks) or "highest" (scores).

    >>> dense_ranks((0.5, 2.0, 0.5), best="highest")
    (1, 0, 1)
    """
    order = {value: place for place, value in enumerate(sorted(set(values), reverse=best == "highest"))}
    return tuple(order[value] for value in values)
