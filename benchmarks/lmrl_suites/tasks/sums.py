"""Addition, digit by digit: a model that has seen right and wrong sums learns to give the right ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lmrl_suites.tasks import distinct


def texts(generator: random.Random, largest: int = 49, right: float = 0.4) -> str:
    """Return a sum of two numbers up to ``largest``, right with this chance, else off by up to ten."""
    a, b = generator.randint(0, largest), generator.randint(0, largest)
    total = a + b
    if generator.random() >= right:
        total = max(0, total + generator.choice([*range(-10, 0), *range(1, 11)]))
    return f"{spelled(a)} + {spelled(b)} = {spelled(total)}"


def spelled(number: int) -> str:
    """Return a number's digits with spaces between.

    >>> spelled(42)
    '4 2'
    """
    return " ".join(str(number))


def prompts(seed: int = 0, count: int = 512, largest: int = 49) -> list[dict[str, Any]]:
    """Return sums without their answer; the column ``answer`` holds it as it is read aloud, digit by digit."""

    def make(generator: random.Random) -> dict[str, Any]:
        a, b = generator.randint(0, largest), generator.randint(0, largest)
        return {"prompt": f"{spelled(a)} + {spelled(b)} =", "answer": a + b}

    return distinct(seed, count, "addition", make)


def exact(prompts: Sequence[str], responses: Sequence[str], *, answer: Sequence[int]) -> list[float]:
    """Return 1 where the digits are those of the answer and nothing else, else 0."""
    del prompts
    return [float(response.split() == list(str(total))) for response, total in zip(responses, answer, strict=True)]
