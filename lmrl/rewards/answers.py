"""``exact_match`` and ``numeric_answer``: is the response the answer that a column of the data holds?"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from lmrl.errors import RewardError, SettingsError, nearest

# A sign counts unless it follows a digit, a letter or a bracket (5-3 is a subtraction); commas only between thousands.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-+\N{MINUS SIGN}])?[$€£]?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
MARK = "####"
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass
class ExactMatchSettings:
    """Settings of the reward ``exact_match``."""

    column: str = "answer"
    """Column of the data that holds the answer, or a list of answers that are all right."""
    part: Literal["whole", "first_line", "last_line"] = "whole"
    """What of the response is compared; white space around it never counts, and inside it counts as one space."""
    ignore_case: bool = True
    """Compare without regard to upper and lower case."""
    ignore_punctuation: bool = True
    """Compare without punctuation."""
    ignore_articles: bool = False
    """Compare without a, an and the."""
    right: float = 1.0
    """Score of a right answer."""
    wrong: float = 0.0
    """Score of a wrong one."""


class ExactMatch:
    """Compares texts after both were normalised in the same way."""

    def __init__(self, settings: ExactMatchSettings) -> None:
        self.settings = settings
        self.bounds = (min(settings.right, settings.wrong), max(settings.right, settings.wrong))
        self.reads_columns = (settings.column,)

    def unreadable(self, row: Mapping[str, Any]) -> str:
        """Return why the row has no answer to compare with; empty if it has one."""
        return f"the column {self.settings.column!r} is empty" if row.get(self.settings.column) is None else ""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Return one score per response; needs the answers' column."""
        answers = column_of("exact_match", columns, self.settings.column)
        for row, answer in enumerate(answers):
            if answer is None:
                raise RewardError(
                    f"reward 'exact_match': the column {self.settings.column!r} holds nothing in row {row} of the "
                    "batch; expected an answer"
                )
        return [
            self.settings.right if self._right(response, answer) else self.settings.wrong
            for response, answer in zip(responses, answers, strict=True)
        ]

    def _right(self, response: str, answer: Any) -> bool:
        lines = [line for line in response.strip().splitlines() if line.strip()] or [""]
        part = {"whole": response, "first_line": lines[0], "last_line": lines[-1]}[self.settings.part]
        answers = answer if isinstance(answer, list | tuple | set | frozenset) else [answer]
        return self.normalised(part) in {self.normalised(str(one)) for one in answers}

    def normalised(self, text: str) -> str:
        """Return the text in the form in which it is compared."""
        if self.settings.ignore_case:
            text = text.casefold()
        if self.settings.ignore_punctuation:
            text = text.translate(_PUNCTUATION)
        if self.settings.ignore_articles:
            text = _ARTICLES.sub(" ", text)
        return " ".join(text.split())


@dataclass
class NumericAnswerSettings:
    """Settings of the reward ``numeric_answer``."""

    column: str = "answer"
    """Column of the data that holds the number: a number, or a text whose last number counts ("... #### 42")."""
    tolerance: float = 0.0
    """Largest distance from the answer that is still right; numbers are compared as decimals, without rounding."""
    right: float = 1.0
    """Score of a right answer."""
    wrong: float = 0.0
    """Score of a wrong one."""
    missing: float = 0.0
    """Score of a response without a number."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.tolerance < float("inf"):
            raise SettingsError(f"tolerance is {self.tolerance}; expected a finite number >= 0")


class NumericAnswer:
    """Compares the last number of the response, or the first one after its last ``####``, with the answer."""

    def __init__(self, settings: NumericAnswerSettings) -> None:
        self.settings = settings
        scores = (settings.right, settings.wrong, settings.missing)
        self.bounds = (min(scores), max(scores))
        self.reads_columns = (settings.column,)
        self.tolerance = Decimal(str(settings.tolerance))

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Return one score per response; needs the answers' column, each of which must hold a number."""
        answers = column_of("numeric_answer", columns, self.settings.column)
        return [
            self._score(response, self._expected(answer, index))
            for index, (response, answer) in enumerate(zip(responses, answers, strict=True))
        ]

    def unreadable(self, row: Mapping[str, Any]) -> str:
        """Return why the row has no number to compare with; empty if it has one."""
        try:
            self._expected(row.get(self.settings.column), 0)
        except RewardError:
            answer = str(row.get(self.settings.column))[:60]
            return f"the column {self.settings.column!r} contains {answer!r}; expected a number"
        return ""

    def _score(self, response: str, expected: Decimal) -> float:
        found = number_in(response)
        if found is None:
            return self.settings.missing
        return self.settings.right if abs(found - expected) <= self.tolerance else self.settings.wrong

    def _expected(self, answer: Any, row: int) -> Decimal:
        if isinstance(answer, str):
            number = number_in(answer)
        else:
            try:
                number = Decimal(str(answer))
            except InvalidOperation:
                number = None
        if number is None or not number.is_finite():
            raise RewardError(
                f"reward 'numeric_answer': the column {self.settings.column!r} holds {str(answer)[:60]!r} in row {row} "
                "of the batch; expected a number, or a text with one"
            )
        return number


def number_in(text: str) -> Decimal | None:
    """Return the first number after the last ``####``, or else the last number of the text, or None.

    >>> number_in("5 - 3 = 2, so she has $1,002.50.")
    Decimal('1002.50')
    """
    before, mark, after = text.rpartition(MARK)
    match = NUMBER.search(after) if mark else None
    if match is None:
        match = max(NUMBER.finditer(before or text), key=lambda found: found.start(), default=None)
    if match is None:
        return None
    number = Decimal(match["digits"].replace(",", ""))
    return -number if match["sign"] in ("-", "\N{MINUS SIGN}") else number


def column_of(reward: str, columns: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    """Return a column, or raise ``RewardError`` with the ones that there are."""
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
