"""``pattern``: a regular expression (Python's ``re``) that responses should, or should not, match."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmrl.errors import SettingsError


@dataclass
class PatternSettings:
    """Settings of the reward ``pattern``."""

    pattern: str = ""
    """Regular expression in Python's syntax."""
    mode: Literal["match", "absent", "count"] = "match"
    """match: 1 if the response matches, else 0; absent: 1 if it does not, else 0; count: number of matches."""
    where: Literal["anywhere", "full"] = "anywhere"
    """anywhere: a part of the response may match; full: the whole response must (white space around it aside)."""
    limit: int = 0
    """In the mode count: matches beyond this number do not count; 0 is no limit."""
    ignore_case: bool = False
    """Letters match in upper and lower case alike."""
    dot_matches_newline: bool = False
    """A dot matches line ends too."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise SettingsError(f"limit is {self.limit}; expected an integer >= 0")
        if self.limit and self.mode != "count":
            raise SettingsError(f"limit is {self.limit}, but mode is {self.mode!r}; limit belongs to mode = 'count'")
        if self.mode == "count" and self.where == "full":
            raise SettingsError("mode is 'count' and where is 'full'; a full match is at most one: use mode = 'match'")


class Pattern:
    """Scores 0 or 1, or the number of matches that do not overlap."""

    reads_columns = ()

    def __init__(self, settings: PatternSettings) -> None:
        if not settings.pattern:
            raise SettingsError("the pattern reward needs a regular expression: set its pattern")
        flags = (re.IGNORECASE if settings.ignore_case else 0) | (re.DOTALL if settings.dot_matches_newline else 0)
        try:
            self.expression = re.compile(settings.pattern, flags)
        except re.error as error:
            raise SettingsError(
                f"the pattern {settings.pattern!r} is not a regular expression: {error}"
                + (". In TOML, write it in single quotes: '\\d+'" if "\\" in settings.pattern else "")
            ) from error
        self.settings = settings
        most = 1 if settings.mode != "count" else settings.limit
        self.bounds = (0.0, float(most)) if most else None

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Return one score per response; prompts are not read."""
        return [self._score(response) for response in responses]

    def _score(self, response: str) -> float:
        if self.settings.mode == "count":
            count = sum(1 for _ in self.expression.finditer(response))
            return float(min(count, self.settings.limit) if self.settings.limit else count)
        if self.settings.where == "full":
            matches = self.expression.fullmatch(response.strip()) is not None
        else:
            matches = self.expression.search(response) is not None
        return float(matches == (self.settings.mode == "match"))
