"""The same reward after the same number of updates: lmrl and TRL learn a small task side by side, seed by seed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lmrl_suites.throughput import trl_peer
from lmrl_suites.throughput.learner import Learner
from lmrl_suites.throughput.setting import Cell
from lmrl_suites.throughput.stage import Stage

LEARNING_RATE = 3e-3
LAST = 5
"""Updates at the end whose mean reward is compared."""
NEW_TOKENS = 16
"""Tokens of a response: few, because the task is learned as well from short ones."""


def measure(stage: Stage, cell: Cell) -> Iterator[dict[str, Any]]:
    """Yield one record per algorithm and side: the mean reward of every batch, a curve for each seed.

    The reward is the share of a response's words that are among the first quarter of the vocabulary.
    """
    settings = stage.settings
    short = replace(stage, settings=replace(settings, smoke=False, new_tokens=min(NEW_TOKENS, settings.new_tokens)))
    for algorithm in ("grpo", "rloo"):
        if cell.group_size < 2:
            continue
        sides: dict[str, Any] = {"lmrl": Learner}
        skipped = {}
        if settings.takes(f"trl_{algorithm}"):
            reason = trl_peer.missing()
            if reason is None:
                sides[f"trl_{algorithm}"] = trl_peer.TRLTrainer
            else:
                skipped[f"trl_{algorithm}"] = reason
        for name, make in sides.items():
            curves, seconds = [], []
            for seed in range(settings.learning_seeds):
                start = time.perf_counter()
                learner = make(short, cell, algorithm, LEARNING_RATE, seed, settings.learning_updates)
                learner.train()
                curves.append([round(mean, 5) for mean in learner.reward.means])
                seconds.append(time.perf_counter() - start)
            ends = [statistics.mean(curve[-LAST:]) for curve in curves]
            yield {
                "side": name,
                "algorithm": algorithm,
                "unit": "mean reward",
                "new_tokens": short.settings.new_tokens,
                "learning_rate": LEARNING_RATE,
                "updates": settings.learning_updates,
                "curves": curves,
                "first": statistics.mean(curve[0] for curve in curves),
                "last": ends,
                "last_mean": statistics.mean(ends),
                "last_deviation": statistics.stdev(ends) if len(ends) > 1 else None,
                "seconds": seconds,
                "skipped": skipped,
            }
