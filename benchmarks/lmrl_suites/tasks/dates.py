"""Date formatting: sentences that hold a date, which is to be written in one form, year-month-day.

After RL4LMs's synthetic dates task (Ramamurthy et al. 2022), whose reward looks for a well-formed date in what was
written. The model is pretrained on dates in several forms, valid and not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from lmrl_suites.tasks import distinct

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
FIRST = date(2000, 1, 1)


def spelled(number: int, width: int) -> str:
    """Return a number's digits, zeros in front, with spaces between.

    >>> spelled(7, 2)
    '0 7'
    """
    return " ".join(f"{number:0{width}d}")


def wanted_form(day: date) -> str:
    """Return a date as it is wanted: year, month and day in digits."""
    return f"{spelled(day.year, 4)} - {spelled(day.month, 2)} - {spelled(day.day, 2)}"


def forms(day: date) -> list[str]:
    """Return a date in every form that the model is taught, the wanted one first."""
    year, month, number = spelled(day.year, 4), spelled(day.month, 2), spelled(day.day, 2)
    return [
        wanted_form(day),
        f"{number} / {month} / {year}",
        f"{month} / {number} / {year}",
        f"{number} . {month} . {year}",
    ]


def drawn(generator: random.Random) -> date:
    """Return a day of the years 2000 to 2029."""
    return FIRST + timedelta(days=generator.randrange(30 * 365))


def asked(day: date) -> str:
    """Return the prompt: the date in words."""
    return f"date : {spelled(day.day, 2)} {MONTHS[day.month - 1]} {spelled(day.year, 4)} ->"


def texts(generator: random.Random) -> str:
    """Return a date in words and again in one of the forms."""
    day = drawn(generator)
    return f"{asked(day)} {generator.choice(forms(day))}"


def prompts(seed: int = 0, count: int = 512) -> list[dict[str, Any]]:
    """Return dates in words, with the column ``answer``."""

    def make(generator: random.Random) -> dict[str, Any]:
        day = drawn(generator)
        return {"prompt": asked(day), "answer": wanted_form(day)}

    return distinct(seed, count, "dates", make)


def formatted(prompts: Sequence[str], responses: Sequence[str], *, answer: Sequence[str]) -> list[float]:
    """Return the share of the places in which an answer agrees with the wanted form; a longer one has more places."""
    del prompts
    scores = []
    for response, wanted in zip(responses, answer, strict=True):
        mine, right = response.split(), wanted.split()
        agreed = sum(one == other for one, other in zip(mine, right, strict=False))
        scores.append(agreed / max(len(mine), len(right)))
    return scores
