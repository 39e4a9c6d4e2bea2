"""Intervals for means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; ``count`` independent units went into it."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        # Adding 0 turns a rounded -0.000 into 0.000.
        mean, low, high = (round(value, 3) + 0.0 for value in (self.mean, self.low, self.high))
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the mean of independent values with Student's t interval; infinite with fewer than two values."""
    from scipy.stats import t

    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean()) if sample.size else math.nan
    if sample.size < 2:
        return Interval(mean, -math.inf, math.inf, sample.size)
    half = float(t.ppf(0.5 + confidence / 2, sample.size - 1)) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return Interval(mean, mean - half, mean + half, sample.size)
