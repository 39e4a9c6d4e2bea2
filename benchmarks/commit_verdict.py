"""Statistics of ``commit_throughput.py``: ratios of two commits, their intervals and verdicts. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmrl.statistics.aggregates import expanded_percentiles
from lmrl.statistics.intervals import Interval

Verdict = Literal["pass", "undecided", "FAIL", "not judged"]
PHASES = ("sampling", "scoring", "update", "whole")
PEAKS = ("memory", "process")
"""Peak resident memory of an update, and of the whole process."""
JUDGED = ("sampling", "update", "whole", "memory")
"""Scoring is short, and ``whole`` includes its time. A process's peak varies by 5% between equal runs."""
SLOWEST = 0.97
"""Smallest ratio of tokens per second that is accepted."""
LARGEST = 1.03
"""Largest ratio of peak memory that is accepted."""
CONFIDENCE = 0.95
ENOUGH = 6
"""Smallest number of pairs for a verdict: the range of 5 covers the median with a probability of 94%, of 6 with 97%."""
RESAMPLES = 9999


@dataclass(frozen=True)
class Update:
    """One counted update: its sampled tokens, the seconds of every phase, and its peak resident memory in bytes."""

    tokens: float
    seconds: dict[str, float]
    peak_bytes: float

    def value(self, measure: str) -> float:
        """Return tokens per second of a phase, or the bytes of ``memory``."""
        return self.peak_bytes if measure == "memory" else self.tokens / self.seconds[measure]


@dataclass(frozen=True)
class Measurement:
    """One process: its counted updates, and the peak resident memory in bytes from its start to its end."""

    updates: list[Update]
    peak_bytes: float

    def value(self, measure: str) -> float:
        """Return the median over the updates, or the bytes of ``process``."""
        if measure == "process":
            return self.peak_bytes
        return statistics.median(update.value(measure) for update in self.updates)


@dataclass(frozen=True)
class Comparison:
    """One measure of one model size: medians of both commits, the ratio of every pair, its interval and verdict."""

    size: str
    measure: str
    before: float
    after: float
    ratios: list[float]
    interval: Interval
    verdict: Verdict


def compare(size: str, pairs: Sequence[tuple[Measurement, Measurement]]) -> list[Comparison]:
    """Return the comparison of every measure over pairs of (before, after)."""
    found = []
    for measure in (*PHASES, *PEAKS):
        ratios = [pair_ratio(before, after, measure) for before, after in pairs]
        interval = ratio_interval(ratios)
        old, new = (statistics.median(pair[side].value(measure) for pair in pairs) for side in (0, 1))
        found.append(Comparison(size, measure, old, new, ratios, interval, verdict(measure, interval)))
    return found


def pair_ratio(before: Measurement, after: Measurement, measure: str) -> float:
    """Return after / before: the median ratio over the updates, or the ratio of both processes' peaks.

    The same update of both processes ran within seconds, so a busy machine slows both.
    """
    if measure == "process":
        return after.peak_bytes / before.peak_bytes
    updates = zip(before.updates, after.updates, strict=True)
    return statistics.median(new.value(measure) / old.value(measure) for old, new in updates)


def ratio_interval(ratios: Sequence[float], seed: int = 0) -> Interval:
    """Return the median of the pairs' ratios with its 95% bootstrap interval; infinite for a single pair.

    The percentiles are moved outward for few pairs (Hesterberg 2015). With nine pairs the interval is the one from the
    second smallest to the second largest ratio, so one disturbed pair on either side does not widen it. With seven or
    fewer it is the range.
    """
    sample = np.asarray(ratios, dtype=np.float64)
    median = float(np.median(sample))
    if sample.size < 2:
        return Interval(median, -math.inf, math.inf, sample.size)
    drawn = np.median(np.random.default_rng(seed).choice(sample, (RESAMPLES, sample.size)), axis=1)
    return Interval(median, *expanded_percentiles(drawn, [sample.size], CONFIDENCE), sample.size)


def verdict(measure: str, interval: Interval) -> Verdict:
    """Return FAIL if the whole interval is beyond the limit, pass if none of it is, and undecided otherwise.

    Fewer than 6 pairs are always undecided.
    """
    if measure not in JUDGED:
        return "not judged"
    if interval.count < ENOUGH:
        return "undecided"
    if measure == "memory":
        beyond, within = interval.low > LARGEST, interval.high <= LARGEST
    else:
        beyond, within = interval.high < SLOWEST, interval.low >= SLOWEST
    return "FAIL" if beyond else "pass" if within else "undecided"
