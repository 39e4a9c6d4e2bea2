"""A judge's model as a judge sees it: it answers questions, within a budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lmrl.judges.settings import AskingSettings


@dataclass(frozen=True)
class Answer:
    """Reply to a question: its text, or None if the question failed, with the reason in ``failure``.

    ``unreadable`` is the reason for which nothing may be read from the text, such as a reply cut off at its limit.
    """

    text: str | None
    failure: str = ""
    unreadable: str = ""


@dataclass(frozen=True)
class Choices:
    """Possible replies of a local model by log-probability: a label and the values behind it.

    ``mean`` replies with the mean of numeric values under their probabilities (Liu et al. 2023, "G-Eval", arXiv
    2303.16634, section 2), otherwise with the most probable value.
    """

    line: str
    values: tuple[str, ...]
    mean: bool = False


CUT_OFF = "cut off at its limit"
TOO_LONG = "question longer than the context"


class Asker(Protocol):
    """A model that answers questions."""

    identity: str
    """All that an answer depends on beside the question; JSON, without any key."""

    def ask(self, questions: Sequence[str], should_stop: Callable[[], bool]) -> Iterator[tuple[int, Answer]]:
        """Yield the place of a question and its answer as each comes; ends when the budget is spent.

        Raises ``AnnotatorError`` when there is no use in going on.
        """
        ...


def budget_of(settings: AskingSettings) -> Budget:
    """Return the budget that the settings set."""
    prices = (settings.prompt_price, settings.reply_price)
    return Budget(settings.max_calls, settings.max_tokens, settings.max_cost, prices)


class Budget:
    """Calls, tokens and money that may still be spent; shared by threads. A limit of 0 is none.

    Prices are per million tokens, of questions and of replies.
    """

    def __init__(
        self, max_calls: int = 0, max_tokens: int = 0, max_cost: float = 0.0, prices: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self.max_calls, self.max_tokens, self.max_cost, self.prices = max_calls, max_tokens, max_cost, prices
        self.calls = self.tokens = self.retries = 0
        self.cost = 0.0
        self._lock = threading.Lock()

    @property
    def spent(self) -> str:
        """The limit that has been reached, in words; empty while there is something left."""
        with self._lock:
            return self._spent()

    def take_call(self) -> bool:
        """Count a call that is about to be made, or return False if it must not be made."""
        with self._lock:
            if self._spent():
                return False
            self.calls += 1
            return True

    def add_tokens(self, question: int, reply: int = 0) -> None:
        """Count the tokens of a call."""
        with self._lock:
            self.tokens += question + reply
            self.cost += (question * self.prices[0] + reply * self.prices[1]) / 1e6

    def count_retry(self) -> None:
        """Count a call that repeats a failed one."""
        with self._lock:
            self.retries += 1

    def _spent(self) -> str:
        if self.max_calls and self.calls >= self.max_calls:
            return f"max_calls = {self.max_calls} is reached"
        if self.max_tokens and self.tokens >= self.max_tokens:
            return f"max_tokens = {self.max_tokens} is reached ({self.tokens} spent)"
        if self.max_cost and self.cost >= self.max_cost:
            return f"max_cost = {self.max_cost:g} is reached ({self.cost:.4g} spent)"
        return ""
