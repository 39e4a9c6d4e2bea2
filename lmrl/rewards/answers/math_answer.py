"""``math_answer``: True where the response's mathematical answer equals the answer of the data. Needs math-verify."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmrl.errors import SettingsError
from lmrl.rewards.answers.base import AnswerReward, Unreadable, listed
from lmrl.rewards.answers.final_answer import final_answer
from lmrl.rewards.answers.math_process import math_process
from lmrl.rewards.answers.math_text import Written, bracketed, same_kind, written

LONGEST = 2000
"""Characters of an expression that is still read."""


@dataclass
class MathAnswerSettings:
    """Settings of the reward ``math_answer``."""

    column: str = "answer"
    """Column of the data that contains the answer: a number, an expression in LaTeX or plain notation, a text that
    gives one (after ####, in a box, behind "the answer is"), or a list of answers that are all right."""
    timeout: float = 5.0
    """Seconds for one comparison; a comparison that takes longer is not right."""
    right: float = 1.0
    """Score of a right answer."""
    wrong: float = 0.0
    """Score of a wrong answer."""

    def __post_init__(self) -> None:
        if not 0.0 < self.timeout < float("inf"):
            raise SettingsError(f"timeout is {self.timeout}; expected a number of seconds above 0")


class MathAnswer(AnswerReward[tuple[Written, ...]]):
    """Compares final answers as mathematics: fractions, sets, intervals, units, percentages."""

    name = "math_answer"

    def __init__(self, settings: MathAnswerSettings) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise SettingsError(
                "reward 'math_answer' needs the package math-verify, which is not installed. Install it with: "
                'pip install "lmrl[math]". numeric_answer compares plain numbers without it.'
            )
        super().__init__(settings)
        self.settings = settings
        self._known: dict[str, Written] = {}

    def read(self, answer: Any, row: Mapping[str, Any]) -> tuple[Written, ...]:
        """Return the answers that are right."""
        found = []
        for one in listed(answer):
            if one is None or isinstance(one, bool | Mapping) or one != one:
                continue
            text = str(one)
            if text not in self._known:
                self._known[text] = self._read(text)
            found.append(self._known[text])
        found = [one for one in found if one.latex]
        if not found:
            raise Unreadable("expected a number, an expression or a text that gives one")
        return tuple(found)

    def _read(self, text: str) -> Written:
        read = written(final_answer(text))
        if not read.latex or len(read.latex) > LONGEST:
            return Written("")
        if read.number is not None or read.text:
            return read
        legible = math_process().compare(read.latex, read.latex, self.settings.timeout)["read"]
        return read if legible else Written("")

    def score(self, response: str, answer: tuple[Written, ...]) -> float:
        """Return the score of a response."""
        given = written(final_answer(response))
        right = bool(given.latex) and len(given.latex) <= LONGEST and any(self._equal(one, given) for one in answer)
        return self.right if right else self.wrong

    def _equal(self, gold: Written, given: Written) -> bool:
        if gold.unit and given.unit and gold.unit != given.unit:
            return False
        bare = gold.percent and not given.percent and not given.unit  # "What percentage?" is answered by 50 as well
        return (bare and self._same(Written(gold.latex), given)) or self._same(gold, given)

    def _same(self, gold: Written, given: Written) -> bool:
        if gold.number is not None and given.number is not None:
            return gold.number == given.number
        if gold == given:
            return True
        if gold.text or given.text:
            return " ".join(gold.latex.casefold().split()) == " ".join(given.latex.casefold().split())
        one, other = bracketed(_value(gold), _value(given))
        if not same_kind(one, other):
            return False
        return math_process().compare(one, other, self.settings.timeout)["equal"]


def _value(answer: Written) -> str:
    return rf"\frac{{{answer.latex}}}{{100}}" if answer.percent else answer.latex
