"""Increasing numbers: the synthetic task that RL4LMs ships for trying algorithms out (Ramamurthy et al. 2022).

The model is pretrained on sequences of numbers, some of which go upwards and most of which are chance; the reward is
the share of the answer that is an increasing sequence from its beginning. Of chance alone a small model learns nothing
of the numbers' order, and no optimizer finds it within a suite's budget. Written from the description of the task, so
figures agree in kind.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from lmrl_suites.tasks import distinct

LARGEST = 99
LENGTH = 12
RISING, STEP = 0.25, 6
"""Share of the texts that go upwards, by steps of 1 to ``STEP``."""


def texts(generator: random.Random) -> str:
    """Return numbers from 0 to ``LARGEST``: in some texts each a little larger than the one before."""
    if generator.random() < RISING:
        start = generator.randint(0, LARGEST // 3)
        return " ".join(map(str, accumulate((generator.randint(1, STEP) for _ in range(LENGTH - 1)), initial=start)))
    return " ".join(str(generator.randint(0, LARGEST)) for _ in range(LENGTH))


def prompts(seed: int = 0, count: int = 100) -> list[dict[str, Any]]:
    """Return two numbers each to go on from, the second from the lower third so that there is room above it."""

    def make(generator: random.Random) -> dict[str, Any]:
        return {"prompt": f"{generator.randint(0, LARGEST)} {generator.randint(0, LARGEST // 3)}"}

    return distinct(seed, count, "numbers", make)


def increasing(prompts: Sequence[str], responses: Sequence[str], *, wanted: int = LENGTH - 2) -> list[float]:
    """Return how many words of the answer are each a larger number than the one before, until one is not.

    As a share of ``wanted`` words or of the answer's length, whichever is more: neither short nor long ones gain.
    """
    return [_share(prompt, response.split(), wanted) for prompt, response in zip(prompts, responses, strict=True)]


def _share(prompt: str, words: list[str], wanted: int) -> float:
    last, count = int(prompt.split()[-1]), 0
    for word in words:
        if not word.isdigit() or int(word) <= last:
            break
        last, count = int(word), count + 1
    return count / max(wanted, len(words))
