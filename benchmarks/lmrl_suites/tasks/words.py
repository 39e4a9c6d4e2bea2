"""Word sorting and copying: lists of short words, put in order or said again.

The form of the sorting task is that of BIG-bench's word sorting (Srivastava et al. 2022): a list of words, and the same
words in alphabetical order. The model is pretrained on lists of which some answers are right and the others shuffled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lmrl_suites.tasks import distinct

WORDS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "koi", "lion", "mole", "newt", "owl")


def drawn(generator: random.Random, shortest: int, longest: int) -> list[str]:
    """Return different words in an order of chance."""
    return generator.sample(WORDS, generator.randint(shortest, longest))


def answered(words: Sequence[str], task: str) -> list[str]:
    """Return the right answer to a list."""
    return sorted(words) if task == "sort" else list(words)


def texts(generator: random.Random, task: str = "sort", right: float = 0.3, shortest: int = 2, longest: int = 4) -> str:
    """Return a list and an answer that is right with this chance, else the same words in an order of chance."""
    words = drawn(generator, shortest, longest)
    answer = answered(words, task)
    if generator.random() >= right:
        answer = generator.sample(words, len(words))
    return f"{task} : {' '.join(words)} -> {' '.join(answer)}"


def prompts(
    seed: int = 0, count: int = 512, task: str = "sort", shortest: int = 2, longest: int = 4
) -> list[dict[str, Any]]:
    """Return lists to be sorted or copied, with the column ``answer``."""

    def make(generator: random.Random) -> dict[str, Any]:
        words = drawn(generator, shortest, longest)
        return {"prompt": f"{task} : {' '.join(words)} ->", "answer": " ".join(answered(words, task))}

    return distinct(seed, count, f"word lists to {task}", make)
