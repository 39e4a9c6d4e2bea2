"""Intervals for means, shares, ratios and paired differences.

Which one for what: ``bounded_interval`` for means of values between known bounds and for shares, also over clusters,
``bootstrap_interval`` for skewed values and ratios, ``RewardScale`` for rewards, which are one or the other, and
``mean_interval`` for a few runs that differ by their seed. The unit that is counted is always the prompt or the text,
never one of several samples of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmrl.errors import SettingsError

Values = Sequence[float] | NDArray[np.float64]
RESAMPLES = 4999
ROUNDING = 1e-9
"""Share of the bounds' distance by which a mean of values within them may lie outside."""
FEW_VALUES = 5
"""A reward with at most so many different values is taken to lie between the least and the greatest one seen."""
BATCH_VALUES = 2_000_000
"""Resampled values held at once, which bounds the memory of a bootstrap."""


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
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if self.is_finite else f"{mean:.3f}"

    @property
    def is_finite(self) -> bool:
        """True if there is an interval: one value alone, or values all alike without bounds, have none."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Return the mean of independent values with Student's t interval; infinite with fewer than two values."""
    from scipy.stats import t

    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean()) if sample.size else math.nan
    if sample.size < 2:
        return Interval(mean, -math.inf, math.inf, sample.size)
    half = float(t.ppf(0.5 + confidence / 2, sample.size - 1)) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return Interval(mean, mean - half, mean + half, sample.size)


def wilson_interval(successes: float, count: float, confidence: float = 0.95) -> Interval:
    """Return a share with Wilson's score interval (Wilson 1927), which has a width at 0 and 1, too.

    ``successes`` may count ties as a half: a tie varies less than a success or a failure, so the interval is then
    somewhat too wide. ``count`` may be an effective one. Without trials it is all of [0, 1].
    """
    if not 0 <= successes <= count:
        raise SettingsError(f"{successes:g} successes of {count:g} trials; expected a number from 0 to the trials")
    if count == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    share, z = successes / count, _normal(confidence)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # The bounds are 0 and 1 at those shares; rounding must not move them inside.
    return Interval(share, min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share), round(count))


def bounded_interval(values: Values, low: float = 0.0, high: float = 1.0, confidence: float = 0.95) -> Interval:
    """Return the mean of independent values that lie between two bounds, with an interval that never passes them.

    Values of the two bounds alone are a share: Wilson's interval. Others have a smaller variance than a share of the
    same mean, so they count for more trials: Wilson's interval with the effective number m (1 - m) / (s^2 / n), scaled
    by (z / t)^2 for few values (Korn and Graubard 1998, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data"). Their variance counts one further, imagined value half of
    the bounds' distance from the mean, because a few rare values that happen not to come would make it too small; they
    never count for fewer than n trials. With clusters (several samples of a prompt), give each cluster's mean.

    Equal values say that another one comes with a probability of at most 1 - (alpha / 2)^(1 / n)
    (Clopper and Pearson 1934), and each other value lies within the bounds: that is the interval, of a width above 0.

    Raises ``SettingsError`` for a value outside the bounds.
    """
    from scipy.stats import t

    sample = np.asarray(values, dtype=np.float64)
    clipped = np.clip(sample, low, high) if low <= high else sample
    if np.abs(sample - clipped).max(initial=0) <= ROUNDING * (high - low):
        sample = clipped
    count = sample.size
    if not low <= high or (count and not (low <= sample.min() and sample.max() <= high)):
        said = f"values from {sample.min():g} to {sample.max():g}" if count else "no values"
        raise SettingsError(f"{said} with the bounds {low:g} and {high:g}; expected bounds that hold every value")
    if count == 0 or low == high:
        return Interval(low if count else math.nan, low, high, count)
    mean, span = float(sample.mean()), high - low
    if sample.min() == sample.max():
        mean = float(sample[0])
        other = 1 - ((1 - confidence) / 2) ** (1 / count)
        return Interval(mean, mean - other * (mean - low), mean + other * (high - mean), count)
    share = (mean - low) / span
    if set(np.unique(sample)) == {low, high}:
        found = wilson_interval(share * count, count, confidence)
    else:
        variance = float(sample.var(ddof=1)) / span**2 + 0.25 / count
        scale = (_normal(confidence) / float(t.ppf(0.5 + confidence / 2, count - 1))) ** 2
        trials = max(share * (1 - share) / (variance / count) * scale, count)
        found = wilson_interval(min(share, 1.0) * trials, trials, confidence)
    return Interval(mean, low + span * found.low, low + span * found.high, count)


def bootstrap_interval(
    values: Values, weights: Values | None = None, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return a mean, or with ``weights`` the ratio sum(values) / sum(weights), with a bootstrap interval over units.

    The interval is the bias-corrected and accelerated one (Efron 1987), which follows skewed values and stays inside
    their range. It is infinite where there is nothing to learn from: fewer than two units, or all alike.
    """
    from scipy.stats import bootstrap

    sample = np.asarray(values, dtype=np.float64)
    over = np.ones_like(sample) if weights is None else np.asarray(weights, dtype=np.float64)
    if sample.shape != over.shape:
        raise SettingsError(f"{sample.size} values and {over.size} weights; expected one weight for each value")
    total = float(over.sum())
    estimate = float(sample.sum()) / total if total else math.nan
    ratios = np.divide(sample, over, out=np.full_like(sample, np.nan), where=over > 0)
    if sample.size < 2 or not total or np.ptp(ratios[over > 0]) <= 1e-12 * max(1.0, abs(estimate)):
        return Interval(estimate, -math.inf, math.inf, sample.size)
    found = bootstrap(
        (sample, over),
        lambda x, w, axis: x.sum(axis) / np.maximum(w.sum(axis), np.finfo(np.float64).tiny),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_VALUES // sample.size),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high), sample.size)


def paired_difference(
    values: Values,
    baseline: Values,
    bounds: tuple[float, float] | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the mean of ``values - baseline``, unit by unit of the same units, with a bootstrap interval.

    What two models have in common, such as an easy prompt, cancels out. ``bounds`` are those of the values: with them,
    differences that are all alike (two equal models) have an interval, too.
    """
    sample = np.asarray(values, dtype=np.float64)
    other = np.asarray(baseline, dtype=np.float64)
    if sample.shape != other.shape:
        raise SettingsError(f"{sample.size} values and {other.size} of the baseline; expected the same units of both")
    differences = sample - other
    if bounds is not None and sample.size and np.ptp(differences) == 0:
        span = bounds[1] - bounds[0]
        return bounded_interval(differences, -span, span, confidence)
    return bootstrap_interval(differences, confidence=confidence, seed=seed)


class RewardScale:
    """Known range of a reward: the user's, or the reward's own and the scores that were seen.

    ``given`` are bounds that every value must keep, ``declared`` ones that the reward says of itself; they are widened
    to what was ``seen``, such as the 0 of an answer whose score was withheld.
    """

    def __init__(
        self,
        seen: Sequence[float],
        given: Sequence[float] | None = None,
        declared: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        known = [*seen, *(declared or ())]
        self.low, self.high = (given[0], given[1]) if given else (min(known), max(known))
        self.known = bool(given or declared) or len(set(seen)) <= FEW_VALUES

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range that values are taken to lie in; None where nothing is known."""
        return (self.low, self.high) if self.known and self.low < self.high else None

    def interval(self, units: Values) -> Interval:
        """Return the mean over prompts with its interval."""
        if self.bounds is not None:
            return bounded_interval(units, *self.bounds)
        found = bootstrap_interval(units, seed=self.seed)
        if not found.is_finite and found.count > 1 and self.low < self.high:  # all alike, but others were not
            return bounded_interval(units, self.low, self.high)
        return found

    def difference(self, units: Values, baseline: Values) -> Interval:
        """Return the mean difference over prompts with its interval."""
        return paired_difference(units, baseline, self.bounds or (self.low, self.high), seed=self.seed)


def group_means(values: Values, groups: Sequence[int]) -> NDArray[np.float64]:
    """Return the mean of each group in the order of the groups' numbers: samples of one prompt become one unit.

    >>> group_means([1.0, 2.0, 5.0], [0, 0, 1]).tolist()
    [1.5, 5.0]
    """
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(numbers, weights=np.asarray(values, dtype=np.float64))
    means: NDArray[np.float64] = sums / np.bincount(numbers)
    return means


def _normal(confidence: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(0.5 + confidence / 2))
