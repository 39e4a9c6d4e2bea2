"""Aggregates over tasks and seeds, with intervals: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
the Statistical Precipice" (the library rliable), and what unequal and few seeds need besides.

Every cell (a task at a coefficient) weighs the same, however many runs of it ended well, so that a hard task of which
half of the runs failed does not count for half. The bootstrap draws seeds anew within each task (strata), never across
tasks, and a seed that is drawn is drawn at all of the task's coefficients: it decides data and start of all of them, so
they are no independent runs. The percentiles are those of the expanded interval (Hesterberg 2015, "What Teachers Should
Know About the Bootstrap", sec. 5.3): a plain percentile interval of five seeds is too narrow by a fifth and more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmrl.statistics.intervals import Interval, wilson_interval

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
RESAMPLES = 1999


@dataclass(frozen=True)
class Scores:
    """The scores of one optimizer's runs, (N,) each: their value, cell, task and seed, the last three as numbers."""

    values: Floats
    cells: Integers
    tasks: Integers
    seeds: Integers

    def within(self, cells: Integers) -> Scores:
        """Return those of these cells."""
        kept = np.isin(self.cells, cells)
        return Scores(self.values[kept], self.cells[kept], self.tasks[kept], self.seeds[kept])

    @property
    def weights(self) -> Floats:
        """Weight of each run, (N,): every cell the same, and 1 together."""
        even: Floats = _even(np.ones((1, len(self.values))), self.cells)[0]
        return even

    @property
    def seeds_of_tasks(self) -> list[int]:
        """Number of different seeds of each task."""
        return [len(np.unique(self.seeds[self.tasks == task])) for task in np.unique(self.tasks)]

    @property
    def has_spread(self) -> bool:
        """True if every cell has two runs, which their spread needs."""
        return bool(len(self.values)) and int(np.unique(self.cells, return_counts=True)[1].min()) > 1


def interquartile_mean(values: Floats, weights: Floats | None = None) -> Floats:
    """Return the mean of the middle half of values (N,) by their weights (..., N): a quarter of the values, rounded
    down, is cut off at either end, as by ``scipy.stats.trim_mean(values, 0.25)`` where all weigh the same.

    >>> float(interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0])))
    1.5
    """
    weights = np.ones(len(values)) if weights is None else weights
    order, cut = np.argsort(values), (len(values) // 4) / len(values)
    upto = np.cumsum(weights[..., order], axis=-1)
    kept = np.clip(upto / upto[..., -1:], cut, 1 - cut)
    shares = np.diff(kept, prepend=cut, axis=-1)
    middle: Floats = (shares * values[order]).sum(-1) / (1 - 2 * cut)
    return middle


def interquartile_interval(scores: Scores, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Return the interquartile mean over all cells and seeds with its stratified bootstrap interval.

    Where a cell has a single run there is no interval: it is infinite.
    """
    count = len(scores.values)
    if not count:
        return Interval(math.nan, -math.inf, math.inf, 0)
    estimate = float(interquartile_mean(scores.values, scores.weights))
    if not scores.has_spread:
        return Interval(estimate, -math.inf, math.inf, count)
    drawn = interquartile_mean(scores.values, resampled_weights(scores, seed))
    low, high = expanded_percentiles(drawn, scores.seeds_of_tasks, confidence)
    return Interval(estimate, min(low, estimate), max(high, estimate), count)


def resampled_weights(scores: Scores, seed: int, count: int = RESAMPLES) -> Floats:
    """Return the weights of the runs, (count, N), in draws with replacement of each task's seeds."""
    generator = np.random.default_rng(seed)
    weights = np.empty((count, len(scores.values)))
    for task in np.unique(scores.tasks):
        mine = scores.tasks == task
        seeds, place = np.unique(scores.seeds[mine], return_inverse=True)
        cells, row = np.unique(scores.cells[mine], return_inverse=True)
        holds = np.zeros((len(cells), len(seeds)))
        holds[row, place] = 1
        weights[:, mine] = _draws(generator, holds, count)[:, place]
    return _even(weights, scores.cells)


def _draws(generator: np.random.Generator, holds: Floats, count: int) -> Integers:
    """Return how often each seed is drawn, (count, seeds); ``holds`` (cells, seeds) says which runs there are.

    A draw that has none of some cell's runs says nothing of that cell, and is drawn again.
    """
    seeds = holds.shape[1]
    drawn = np.zeros((count, seeds), dtype=np.int64)
    while (lost := (drawn @ holds.T == 0).any(1)).any():
        drawn[lost] = generator.multinomial(seeds, np.full(seeds, 1 / seeds), int(lost.sum()))
    return drawn


def _even(weights: Floats, cells: Integers) -> Floats:
    """Return weights (R, N) of which every cell has the same, and which are 1 together."""
    _, place = np.unique(cells, return_inverse=True)
    belongs = np.eye(place.max() + 1)[place] if len(place) else np.zeros((0, 1))
    even: Floats = weights / (weights @ belongs)[:, place] / belongs.shape[1]
    return even


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

    The interval is the bootstrap's, and never narrower on a side than Wilson's where all runs are alike or a cell has
    one alone.
    """
    if not len(scores.values):
        return [Interval(math.nan, 0.0, 1.0, 0) for _ in thresholds]
    above = (scores.values[:, None] > np.asarray(thresholds)).astype(float)
    shares, drawn = scores.weights @ above, resampled_weights(scores, seed) @ above
    return [
        _share(drawn[:, place], float(share), scores.seeds_of_tasks, scores.has_spread, confidence)
        for place, share in enumerate(shares)
    ]


def probability_of_improvement(
    scores: Scores, baseline: Scores, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Return the chance that a run of one optimizer beats a run of another in a cell drawn at random; ties are halves.

    The mean over cells of Mann and Whitney's statistic (Agarwal et al. 2021, sec. 4.3). Cells that either lacks are
    left out. Runs that never overlap, or of which a cell has one alone, have Wilson's interval for as many trials as
    the side with fewer has seeds, because a bootstrap would claim certainty after two seeds.
    """
    both = np.intersect1d(scores.cells, baseline.cells)
    mine, theirs = scores.within(both), baseline.within(both)
    if not len(both):
        return Interval(math.nan, 0.0, 1.0, 0)
    same_cell = mine.cells[:, None] == theirs.cells
    wins = (mine.values[:, None] > theirs.values) + 0.5 * (mine.values[:, None] == theirs.values)
    # Both sides' weights in a cell are 1 / cells together, so their product lacks a factor of the number of cells.
    table = len(both) * np.where(same_cell, wins, 0.0)
    estimate = float(mine.weights @ table @ theirs.weights)
    x, y = resampled_weights(mine, seed, resamples), resampled_weights(theirs, seed + 1, resamples)
    drawn = np.einsum("rm,rm->r", x @ table, y)
    sizes = [min(a, b) for a, b in zip(mine.seeds_of_tasks, theirs.seeds_of_tasks, strict=True)]
    return _share(drawn, estimate, sizes, mine.has_spread and theirs.has_spread, confidence)


def _share(drawn: Floats, share: float, sizes: Sequence[int], has_spread: bool, confidence: float) -> Interval:
    count, share = sum(sizes), min(max(round(share, 12), 0.0), 1.0)  # not 1 + 1e-16
    if has_spread and np.ptp(drawn) > 1e-9:
        low, high = expanded_percentiles(drawn, sizes, confidence)
        return Interval(share, max(0.0, min(low, share)), min(1.0, max(high, share)), count)
    found = wilson_interval(share * count, count, confidence)
    return Interval(share, found.low, found.high, count)
