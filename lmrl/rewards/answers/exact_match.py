"""``exact_match``: True where the response is the answer, after the same normalization of both.

Only what cannot change a meaning is ignored. Punctuation that structures a sentence (``. , ; : ! ?``, quotes, brackets,
Markdown emphasis) is ignored, except inside a number (``2.5``, ``1,5``, ``12:30``, ``5!``) and around several numbers
(``[1, 2)``). Symbols are never ignored:
signs, operators, ``/``, ``%``, currencies, ``#``, ``@``, hyphens. A text of ignored characters alone never matches.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmrl.rewards.answers.base import AnswerReward, Unreadable, listed

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)
_SIGNS = str.maketrans(dict.fromkeys("\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{EN DASH}", "-"))
_THOUSANDS = re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d,])")
_NUMBERS = re.compile(r"[(\[{]\s*[-+]?\.?\d[\d.\s]*(?:[,;]\s*[-+]?\.?\d[\d.\s]*)+[)\]}]")
"""Points, intervals and sets: their brackets have a meaning."""
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3}|_{1,3}|`+)(?=\S)(.+?)(?<=\S)\1(?![\w*])")
_APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
_STOPS = ".,:"
"""Marks that are part of a number between two digits; a point also in front of one."""


@dataclass
class ExactMatchSettings:
    """Settings of the reward ``exact_match``."""

    column: str = "answer"
    """Column of the data that contains the answer, or a list of answers that are all right."""
    part: Literal["whole", "first_line", "last_line"] = "whole"
    """Part of the response that is compared; white space around it is ignored, and inside it counts as one space."""
    ignore_case: bool = True
    """Compare without regard to upper and lower case."""
    ignore_punctuation: bool = True
    """Ignore punctuation that structures a sentence: . , ; : ! ? quotes, brackets and Markdown emphasis. Signs, decimal
    points, operators, %, currencies and other symbols always count."""
    ignore_articles: bool = False
    """Compare without a, an and the."""
    right: float = 1.0
    """Score of a right answer."""
    wrong: float = 0.0
    """Score of a wrong answer."""


class ExactMatch(AnswerReward[frozenset[str]]):
    """Compares texts after the same normalization of both."""

    name = "exact_match"

    def __init__(self, settings: ExactMatchSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def read(self, answer: Any, row: Mapping[str, Any]) -> frozenset[str]:
        """Return the normalized texts that are right."""
        if any(isinstance(one, Mapping) for one in listed(answer)):
            raise Unreadable(
                "expected a text, a number or a list of them; make a column of the part that is the answer"
            )
        texts = {form for one in listed(answer) if one is not None for form in _written(one)}
        found = frozenset(filter(None, (self.normalized(text) for text in texts)))
        if not found:
            advice = " Set ignore_punctuation = false." if any(text.strip() for text in texts) else ""
            raise Unreadable(f"expected an answer with a word, a number or a symbol.{advice}")
        return found

    def score(self, response: str, answer: frozenset[str]) -> float:
        """Return the score of a response."""
        lines = [line for line in response.strip().splitlines() if line.strip()] or [""]
        part = {"whole": response, "first_line": lines[0], "last_line": lines[-1]}[self.settings.part]
        return self.right if self.normalized(part) in answer else self.wrong

    def normalized(self, text: str) -> str:
        """Return the text in the form in which it is compared."""
        text = unicodedata.normalize("NFC", text)
        if self.settings.ignore_case:
            text = text.casefold()
        if self.settings.ignore_punctuation:
            text = without_punctuation(text)
        if self.settings.ignore_articles:
            text = _ARTICLES.sub(" ", text)
        return " ".join(text.split())


def without_punctuation(text: str) -> str:
    """Return a text without the punctuation that structures sentences.

    >>> without_punctuation("(-2.5)!").strip()
    '-2.5'
    """
    for _ in range(3):  # ***both***
        text = _EMPHASIS.sub(r"\2", text)
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text.translate(_SIGNS))
    text = _NUMBERS.sub(lambda found: re.sub(r"\s*[,;]\s*", "; ", found[0]), text)
    padded = f" {text} "
    kept = {place + 1 for found in _NUMBERS.finditer(text) for place in (found.start(), found.end() - 1)}
    return "".join(
        f" {padded[place]} " if place in kept else _kept(*padded[place - 1 : place + 2])
        for place in range(1, len(padded) - 1)
    )


def _kept(before: str, mark: str, after: str) -> str:
    """Return what remains of a character: itself, a space, or nothing between two letters (don't, U.S.)."""
    if not unicodedata.category(mark).startswith("P") or mark in "-/%#@&*\\_†‡§‰":
        return mark
    if mark in _STOPS and after.isnumeric() and (before.isnumeric() or (mark == "." and not before.isalpha())):
        return mark
    if mark == "!" and before.isnumeric():  # a factorial
        return mark
    return "" if mark in (*_APOSTROPHES, ".") and before.isalpha() and after.isalpha() else " "


def _written(answer: Any) -> list[str]:
    """Return the texts of an answer: a float without a fraction is an integer that a table stored as a float."""
    if isinstance(answer, float) or type(answer).__module__ == "numpy":
        number = float(answer) if not isinstance(answer, str) else None
        if number is not None and number != number:
            return []
        if number is not None and number.is_integer():
            return [str(answer), str(int(number))]
    return [str(answer)]
