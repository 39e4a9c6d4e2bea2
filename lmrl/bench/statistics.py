"""Aggregates over tasks and seeds, with intervals: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
the Statistical Precipice" (the library rliable), and what few seeds need besides.

``Scores`` are those of one optimizer: for each task (and coefficient) an array with a value per seed. Tasks may have
different numbers of seeds, because a failed run has no value. Seeds are resampled within each task (strata), never
across tasks. The percentiles are those of the expanded interval (Hesterberg 2015, "What Teachers Should Know About the
Bootstrap", sec. 5.3): a plain percentile interval of five seeds is too narrow by a fifth and more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmrl.errors import SettingsError
from lmrl.statistics import Interval, wilson_interval

Floats = NDArray[np.float64]
Scores = Sequence[Sequence[float] | Floats]
RESAMPLES = 1999


def interquartile_mean(values: Floats) -> Floats:
    """Return the mean of the middle half along the last axis: a quarter of the values, rounded down, is cut off at
    either end, as by ``scipy.stats.trim_mean(values, 0.25)``.

    >>> float(interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0])))
    1.5
    """
    cut = values.shape[-1] // 4
    ordered = np.sort(values, axis=-1)
    middle: Floats = ordered[..., cut : values.shape[-1] - cut].mean(-1)
    return middle


def interquartile_interval(scores: Scores, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the interquartile mean over all tasks and seeds with its stratified bootstrap interval.

    Without two seeds in any task there is no interval: it is infinite.
    """
    strata = _arrays(scores)
    pooled = np.concatenate(strata) if strata else np.zeros(0)
    if pooled.size == 0:
        return Interval(math.nan, -math.inf, math.inf, 0)
    estimate = float(interquartile_mean(pooled))
    if max(part.size for part in strata) < 2:
        return Interval(estimate, -math.inf, math.inf, pooled.size)
    drawn = interquartile_mean(np.concatenate(resampled(strata, seed), axis=1))
    low, high = expanded_percentiles(drawn, [part.size for part in strata], confidence)
    return Interval(estimate, min(low, estimate), max(high, estimate), pooled.size)


def resampled(strata: Sequence[Floats], seed: int, count: int = RESAMPLES) -> list[Floats]:
    """Return resampled values of each stratum, (count, seeds), drawn with replacement within it."""
    generator = np.random.default_rng(seed)
    return [part[generator.integers(0, part.size, (count, part.size))] for part in strata]


def expanded_percentiles(drawn: Floats, sizes: Sequence[int], confidence: float) -> tuple[float, float]:
    """Return the bootstrap's percentiles, moved outward for strata of few values (Hesterberg 2015).

    Resampling n values has a variance too small by (n - 1) / n, and a normal quantile stands where Student's t should,
    with half of the degrees of freedom that all strata have together, but no fewer than one of them has.
    """
    from scipy.stats import norm, t

    several = [size for size in sizes if size > 1]
    own = sum(size - 1 for size in several)
    variance_lost = sum(several) / own
    # The interquartile mean rests on half of the values: as many degrees of freedom as they have.
    freedom = max(own / 2, max(several) - 1)
    tail = float(norm.cdf(math.sqrt(variance_lost) * t.ppf((1 - confidence) / 2, freedom)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def performance_profile(
    scores: Scores, thresholds: Sequence[float] | Floats, *, confidence: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Return, for each threshold, the share of runs whose score is above it, with pointwise intervals.

    The interval is the bootstrap's, and never narrower on a side than Wilson's where all runs are alike.
    """
    strata = _arrays(scores)
    count = sum(part.size for part in strata)
    if not count:
        return [Interval(math.nan, 0.0, 1.0, 0) for _ in thresholds]
    draws = np.concatenate(resampled(strata, seed), axis=1)
    pooled = np.concatenate(strata)
    sizes = [part.size for part in strata]
    found = []
    for threshold in thresholds:
        share = float((pooled > threshold).mean())
        found.append(_share((draws > threshold).mean(1), share, sizes, count, confidence))
    return found


def probability_of_improvement(
    scores: Scores, baseline: Scores, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return the chance that a run of one optimizer beats a run of another on a task drawn at random; ties are halves.

    The mean over tasks of Mann and Whitney's statistic (Agarwal et al. 2021, sec. 4.3). Tasks that either lacks are
    left out; give the tasks in the same order. Runs that never overlap have Wilson's interval for as many trials as
    the shorter side has runs, because a bootstrap would claim certainty after two seeds.
    """
    if len(scores) != len(baseline):
        raise SettingsError(f"{len(scores)} tasks and {len(baseline)} of the baseline; expected the same tasks of both")
    pairs = [(x, y) for x, y in zip(_arrays(scores), _arrays(baseline), strict=True) if x.size and y.size]
    if not pairs:
        return Interval(math.nan, 0.0, 1.0, 0)
    estimate = float(np.mean([_wins(x[None], y[None])[0] for x, y in pairs]))
    mine = resampled([x for x, _ in pairs], seed, resamples)
    theirs = resampled([y for _, y in pairs], seed + 1, resamples)
    drawn = np.mean([_wins(x, y) for x, y in zip(mine, theirs, strict=True)], axis=0)
    trials = sum(min(x.size, y.size) for x, y in pairs)
    return _share(drawn, estimate, [min(x.size, y.size) for x, y in pairs], trials, confidence)


def _share(drawn: Floats, share: float, sizes: Sequence[int], count: int, confidence: float) -> Interval:
    if max(sizes) > 1 and np.ptp(drawn) > 0:
        low, high = expanded_percentiles(drawn, sizes, confidence)
        return Interval(share, max(0.0, min(low, share)), min(1.0, max(high, share)), count)
    found = wilson_interval(share * count, count, confidence)
    return Interval(share, found.low, found.high, count)


def _wins(x: Floats, y: Floats) -> Floats:
    """Return for each row the share of pairs in which x is greater, ties as halves; (R, n) and (R, m) give (R,)."""
    greater = (x[:, :, None] > y[:, None, :]).mean((1, 2))
    equal = (x[:, :, None] == y[:, None, :]).mean((1, 2))
    found: Floats = greater + 0.5 * equal
    return found


def _arrays(scores: Scores) -> list[Floats]:
    return [np.asarray(part, dtype=np.float64) for part in scores]
