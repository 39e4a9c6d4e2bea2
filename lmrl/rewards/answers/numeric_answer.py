"""``numeric_answer``: True where the response's plain number is the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from lmrl.errors import SettingsError
from lmrl.rewards.answers.base import AnswerReward, Unreadable
from lmrl.rewards.answers.plain_numbers import plain_number


@dataclass
class NumericAnswerSettings:
    """Settings of the reward ``numeric_answer``."""

    column: str = "answer"
    """Column of the data that contains the number: a number, or a text that ends with one ("... #### 42")."""
    tolerance: float = 0.0
    """Largest distance from the answer that is still right; numbers are compared as decimals, without rounding."""
    right: float = 1.0
    """Score of a right answer."""
    wrong: float = 0.0
    """Score of a wrong answer."""
    missing: float = 0.0
    """Score of a response without a plain number. A fraction, ratio, percentage, range, interval, power, scale word or
    unit makes a number not plain; use math_answer for these."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.tolerance < float("inf"):
            raise SettingsError(f"tolerance is {self.tolerance}; expected a finite number >= 0")


class NumericAnswer(AnswerReward[Decimal]):
    """Compares the last number of the response, or the first one after its last ``####``, with the answer."""

    name = "numeric_answer"

    def __init__(self, settings: NumericAnswerSettings) -> None:
        super().__init__(settings, settings.missing)
        self.settings = settings
        self.tolerance = Decimal(str(settings.tolerance))

    def read(self, answer: Any, row: Mapping[str, Any]) -> Decimal:
        """Return the number of an answer."""
        if isinstance(answer, str):
            number = plain_number(answer)
        else:
            try:
                number = None if isinstance(answer, bool) else Decimal(str(answer))
            except InvalidOperation:
                number = None
        if number is None or not number.is_finite():
            raise Unreadable(
                "expected a number, or a text that ends with a plain one; math_answer reads fractions, percentages, "
                "intervals and units"
            )
        return number

    def score(self, response: str, answer: Decimal) -> float:
        """Return the score of a response."""
        found = plain_number(response)
        if found is None:
            return self.settings.missing
        return self.right if abs(found - answer) <= self.tolerance else self.wrong
