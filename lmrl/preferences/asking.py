"""What a judge's model is to a judge: something that answers questions, within a budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """An answer's text; None where the question failed, for the reason in ``failure``."""

    text: str | None
    failure: str = ""


class Asker(Protocol):
    """A model that answers questions."""

    identity: str
    """All that an answer depends on beside the question; JSON, without any key."""

    def ask(self, questions: Sequence[str], should_stop: Callable[[], bool]) -> Iterator[tuple[int, Answer]]:
        """Yield the place of a question and its answer as each comes; ends when the budget is spent.

        Raises ``AnnotatorError`` when there is no use in going on.
        """
        ...


class Budget:
    """How many calls and tokens may still be spent; shared by threads. A limit of 0 is none."""

    def __init__(self, max_calls: int = 0, max_tokens: int = 0) -> None:
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.calls = self.tokens = self.retries = 0
        self._lock = threading.Lock()

    @property
    def spent(self) -> str:
        """Which limit has been reached, in words; empty while there is something left."""
        with self._lock:
            return self._spent()

    def take_call(self) -> bool:
        """Count a call that is about to be made, or return False if it must not be made."""
        with self._lock:
            if self._spent():
                return False
            self.calls += 1
            return True

    def add_tokens(self, tokens: int) -> None:
        """Count tokens that a call has cost."""
        with self._lock:
            self.tokens += tokens

    def count_retry(self) -> None:
        """Count a call that repeats a failed one."""
        with self._lock:
            self.retries += 1

    def _spent(self) -> str:
        if self.max_calls and self.calls >= self.max_calls:
            return f"max_calls = {self.max_calls} is reached"
        if self.max_tokens and self.tokens >= self.max_tokens:
            return f"max_tokens = {self.max_tokens} is reached ({self.tokens} spent)"
        return ""
