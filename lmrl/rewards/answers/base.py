"""Base class and helpers of rewards that compare the response with an answer in a column of the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from lmrl.errors import RewardError, nearest

MARK = "####"
EXCERPT = 60
Answer = TypeVar("Answer")


class Unreadable(ValueError):
    """An answer of the data that a reward cannot read; the text is the reason."""


class AnswerSettings(Protocol):
    """Settings that all of these rewards have."""

    column: str
    right: float
    wrong: float


class AnswerReward(ABC, Generic[Answer]):
    """Compares responses with the answers of a column.

    Subclasses read an answer (``read``, which raises ``Unreadable``) and score a response (``score``). Rows with an
    unreadable answer are skipped before a run; where they reach the reward nevertheless, they are an error.
    """

    name = ""

    def __init__(self, settings: AnswerSettings, *scores: float) -> None:
        self.column, self.right, self.wrong = settings.column, settings.right, settings.wrong
        ends = (self.right, self.wrong, *scores)
        self.bounds = (min(ends), max(ends))

    @property
    def reads_columns(self) -> tuple[str, ...]:
        """Columns that the reward reads."""
        return (self.column,)

    @abstractmethod
    def read(self, answer: Any, row: Mapping[str, Any]) -> Answer:
        """Return an answer in the form in which it is compared. Raises ``Unreadable``."""

    @abstractmethod
    def score(self, response: str, answer: Answer) -> float:
        """Return the score of a response."""

    def unreadable(self, row: Mapping[str, Any]) -> str:
        """Return why the row has no answer to compare with, or an empty string."""
        try:
            self.read(row.get(self.column), row)
        except Unreadable as error:
            return f"the column {self.column!r} contains {excerpt(row.get(self.column))}; {error}"
        return ""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Return one score per response; needs the answers' column."""
        answers = column_of(self.name, columns, self.column)
        read = []
        for place, answer in enumerate(answers):
            try:
                read.append(self.read(answer, {name: values[place] for name, values in columns.items()}))
            except Unreadable as error:
                raise RewardError(
                    f"reward {self.name!r}: the column {self.column!r} contains {excerpt(answer)} in row {place} of "
                    f"the batch; {error}"
                ) from error
        return self.scores(responses, read)

    def scores(self, responses: Sequence[str], answers: Sequence[Answer]) -> list[float]:
        """Return one score per response."""
        return [self.score(response, answer) for response, answer in zip(responses, answers, strict=True)]


def column_of(reward: str, columns: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    """Return a column, or raise ``RewardError`` with the names that exist."""
    if name not in columns:
        guess = nearest(name, columns)
        raise RewardError(
            f"reward {reward!r} needs the column {name!r}, but the rows have "
            f"{', '.join(sorted(columns)) or 'none besides the prompt'}; "
            + (
                f"did you mean {guess!r}? Set its column."
                if guess
                else "set its column, or add the column to the data."
            )
        )
    return columns[name]


def listed(answer: Any) -> list[Any]:
    """Return the answers that are all right: the items of a list, a set or an array, or the answer itself."""
    if isinstance(answer, list | tuple | set | frozenset):
        return list(answer)
    if hasattr(answer, "tolist") and getattr(answer, "ndim", None):  # a numpy array, as parquet files give
        return list(answer.tolist())
    return [answer]


def excerpt(value: Any) -> str:
    """Return a value as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= EXCERPT else f"{shown[:EXCERPT]}..."
