"""Timing several sides of one comparison in turns, so that a machine's moods meet all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Run = Callable[[int], int]
"""``run(number)`` does the work once and returns how much was done (tokens, steps)."""


@dataclass
class Side:
    """One contender's raw runs: how much was done in how many seconds, and where the seconds went if that is known."""

    name: str
    counts: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rates(self) -> list[float]:
        """Amount per second of each run."""
        return [count / seconds for count, seconds in zip(self.counts, self.seconds, strict=True)]


@dataclass
class Comparison:
    """The sides of one workload; ratios are to ``baseline``."""

    workload: str
    unit: str
    sides: list[Side]
    baseline: str | None

    def ratios(self, side: Side) -> list[float]:
        """How many times as fast as the baseline ``side`` was, round by round."""
        base = next((other for other in self.sides if other.name == self.baseline), None)
        if base is None or base is side:
            return []
        return [mine / theirs for mine, theirs in zip(side.rates, base.rates, strict=True)]


def compare(
    workload: str,
    unit: str,
    sides: Mapping[str, Run],
    runs: int,
    baseline: str | None,
    tick: Callable[[], None],
) -> Comparison:
    """Run the sides in turns, ``runs`` times each after one round that is not counted; ``tick`` moves a bar."""
    found = {name: Side(name) for name in sides}
    for number in range(-1, runs):
        for name, run in sides.items():
            gc.collect()
            start = time.perf_counter()
            count = run(number + 1)
            seconds = time.perf_counter() - start
            if number >= 0:
                found[name].counts.append(count)
                found[name].seconds.append(seconds)
            tick()
    return Comparison(workload, unit, list(found.values()), baseline)


def spread(values: list[float]) -> dict[str, float] | None:
    """Return median, least and greatest, or none of no values."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
