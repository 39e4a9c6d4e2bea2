"""Tasks that code generates: what a small model is pretrained on, prompts for RL, and a reward that knows the answer.

A module has `texts(generator)`, `prompts(seed, count)` and rewards of the usual signature; suites name them as
"module:function". Prompts are rows with a ``prompt`` and the columns that the reward reads.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from lmrl.errors import SettingsError


def distinct(
    seed: int, count: int, purpose: str, make: Callable[[random.Random], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return ``count`` rows with distinct prompts; raises ``SettingsError`` where there are not as many."""
    # The name is a seed: stored results were made with it.
    generator = random.Random(f"lmrl.bench.tasks/{purpose}/{seed}")
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(50 * count + 1000):
        if len(rows) == count:
            break
        row = make(generator)
        rows.setdefault(row["prompt"], row)
    if len(rows) < count:
        raise SettingsError(f"{purpose} has fewer than {count} distinct prompts; ask for at most {len(rows)}")
    return list(rows.values())
