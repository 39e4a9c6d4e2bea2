"""``length`` and ``repetition``: rewards of a response's shape, to be added to others with a weight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmrl.config import only_if
from lmrl.errors import SettingsError

_WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}-]\w+)*")


@dataclass
class LengthSettings:
    """Settings of the reward ``length``."""

    mode: Literal["band", "linear"] = "band"
    """band: 1 between minimum and maximum, falling to 0 outside; linear: minus cost for each unit."""
    unit: Literal["words", "characters"] = "words"
    """Unit that is counted; white space around the response is not."""
    minimum: int = 0
    """The band's lower end."""
    maximum: int = 0
    """The band's upper end; 0 is no upper end."""
    falloff: float = 10.0
    """Units outside the band at which the score has fallen to 0; 0 makes the band's edges sharp."""
    cost: float = 0.01
    """In the mode linear: what each unit costs; a negative cost rewards length."""

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum", "falloff"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a number >= 0")
        if self.maximum and self.maximum < self.minimum:
            raise SettingsError(f"maximum is {self.maximum} and minimum {self.minimum}; expected minimum <= maximum")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        found = only_if(self.mode == "band", "mode=band", "minimum", "maximum", "falloff")
        return found | only_if(self.mode == "linear", "mode=linear", "cost")


class Length:
    """Scores lie in [0, 1] with a band, and are ``-cost * length`` without one."""

    reads_columns = ()

    def __init__(self, settings: LengthSettings) -> None:
        if settings.mode == "band" and not (settings.minimum or settings.maximum):
            raise SettingsError("the length reward needs a band: set its minimum, its maximum, or mode = 'linear'")
        self.settings = settings
        self.bounds = (0.0, 1.0) if settings.mode == "band" else None

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Return one score per response; prompts are not read."""
        return [self._score(response) for response in responses]

    def _score(self, response: str) -> float:
        settings = self.settings
        length = len(words(response)) if settings.unit == "words" else len(response.strip())
        if settings.mode == "linear":
            return -settings.cost * length
        outside = max(0, settings.minimum - length)
        if settings.maximum:
            outside = max(outside, length - settings.maximum)
        if not outside:
            return 1.0
        return max(0.0, 1.0 - outside / settings.falloff) if settings.falloff else 0.0


@dataclass
class RepetitionSettings:
    """Settings of the reward ``repetition``."""

    n: int = 3
    """Words per n-gram."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SettingsError(f"n is {self.n}; expected an integer >= 1")


class Repetition:
    """Scores lie in (-1, 0]: minus the share of n-grams that the response has already used, 0 for a short one."""

    bounds = (-1.0, 0.0)

    reads_columns = ()

    def __init__(self, settings: RepetitionSettings) -> None:
        self.n = settings.n

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Return one score per response; prompts are not read."""
        return [self._score(response) for response in responses]

    def _score(self, response: str) -> float:
        used = [word.lower() for word in words(response)]
        grams = [tuple(used[start : start + self.n]) for start in range(len(used) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, with apostrophes and hyphens inside."""
    return _WORD.findall(text)
