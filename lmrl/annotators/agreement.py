"""Agreement of two annotators on the same comparisons, with intervals over prompts.

Each pair of completions is a unit on which an annotator says better, worse or tie. Pairs of one prompt hang together,
so intervals resample prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrl.statistics.intervals import Interval, bootstrap_interval, bounded_interval

RESAMPLES = 2000
Ranks = Sequence[int]


@dataclass(frozen=True)
class Agreement:
    """Comparison of two annotators' rankings of the same completions; ``comparisons`` is the number of prompts.

    ``agreement``: share of the pairs that neither ties on which both name the same one. ``exact``: share of all pairs
    on which both say the same, ties included. ``tau``: mean of Kendall's tau-b over the prompts where neither ties
    everything. ``kappa``: Cohen's kappa of better, worse and tie. ``alpha``: Krippendorff's ordinal alpha of ranks.
    """

    first: str
    second: str
    comparisons: int
    pairs: int
    strict_pairs: int
    agreement: Interval
    exact: Interval
    tau: Interval
    kappa: Interval
    alpha: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; what is not finite is None, which JSON can hold."""
        return {name: plain_numbers(value) for name, value in asdict(self).items()}


def compare_annotators(
    names: tuple[str, str], first: Mapping[int, Ranks], second: Mapping[int, Ranks], seed: int = 0
) -> Agreement:
    """Return how two annotators agree on the comparisons that both have ranked, by the comparison's number."""
    common = sorted(set(first) & set(second))
    tables = np.array([verdict_table(first[index], second[index]) for index in common]).reshape(len(common), 3, 3)
    same = tables[:, 0, 0] + tables[:, 2, 2]
    strict = same + tables[:, 0, 2] + tables[:, 2, 0]
    taus = [tau for index in common if not math.isnan(tau := tau_b(first[index], second[index]))]
    return Agreement(
        first=names[0],
        second=names[1],
        comparisons=len(common),
        pairs=int(tables.sum()) // 2,
        strict_pairs=int(strict.sum()) // 2,
        agreement=share_interval(same, strict, seed),
        exact=share_interval(same + tables[:, 1, 1], tables.sum((1, 2)), seed),
        tau=_bounded_mean(taus, -1.0, seed),
        kappa=_kappa_interval(tables, seed),
        alpha=krippendorff_alpha(
            [rank for index in common for rank in first[index]], [rank for index in common for rank in second[index]]
        ),
    )


def verdict_table(first: Ranks, second: Ranks) -> NDArray[np.float64]:
    """Return how often the two say better, tie or worse (rows: first, columns: second), (3, 3).

    Each pair is counted in both directions, because which of the two completions is named first means nothing.
    """
    verdicts = []
    for ranks in (first, second):
        column = np.asarray(ranks)
        verdicts.append(np.sign(column[:, None] - column[None, :])[~np.eye(len(column), dtype=bool)] + 1)
    table = np.zeros((3, 3))
    np.add.at(table, (verdicts[0], verdicts[1]), 1)
    return table


def tau_b(first: Ranks, second: Ranks) -> float:
    """Return Kendall's tau-b (Kendall 1945), NaN if one of the two ties everything."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    table = verdict_table(first, second)
    concordant, discordant = table[0, 0] + table[2, 2], table[0, 2] + table[2, 0]
    untied = [table.sum() - table[1].sum(), table.sum() - table[:, 1].sum()]
    return float((concordant - discordant) / math.sqrt(untied[0] * untied[1]))


def cohen_kappa(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Cohen's kappa (Cohen 1960) of tables (..., 3, 3) of counts; NaN where chance explains everything."""
    total = table.sum((-2, -1))
    observed = np.trace(table, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = (table.sum(-1) * table.sum(-2)).sum(-1) / total
        kappa: NDArray[np.float64] = np.where(total > expected, (observed - expected) / (total - expected), np.nan)
    return kappa


def krippendorff_alpha(*raters: Sequence[float | None]) -> float:
    """Return Krippendorff's alpha with the ordinal metric; NaN where all values are one.

    ``raters[r][u]`` is the value that rater r gave to unit u, None for none. Source: Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability", sections D and E.
    """
    values = sorted({value for rater in raters for value in rater if value is not None})
    place = {value: index for index, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in zip(*raters, strict=True):
        given = [place[value] for value in unit if value is not None]
        if len(given) < 2:
            continue
        counts = np.bincount(given, minlength=len(values)).astype(np.float64)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(given) - 1)
    totals = coincidences.sum(0)
    number = totals.sum()
    # Between two ranks lie all values from one to the other, the ends by half.
    below = np.cumsum(totals) - totals / 2
    distances = (below[:, None] - below[None, :]) ** 2
    observed = (coincidences * distances).sum()
    expected = (np.outer(totals, totals) * distances).sum() / (number - 1) if number > 1 else 0.0
    return float(1 - observed / expected) if expected > 0 else math.nan


def share_interval(hits: NDArray[np.float64], of: NDArray[np.float64], seed: int = 0) -> Interval:
    """Return sum(hits) / sum(of) with a bootstrap interval over prompts, and a width also where all are alike.

    ``hits`` and ``of`` have one number per prompt; the interval's count is the number of prompts with any.
    """
    kept = of > 0
    found = bootstrap_interval(hits[kept], of[kept], seed=seed)
    if math.isfinite(found.low) or not kept.any():
        return found
    bounded = bounded_interval(hits[kept] / of[kept])
    return Interval(found.mean, bounded.low, bounded.high, found.count)


def _bounded_mean(values: Sequence[float], low: float, seed: int) -> Interval:
    found = bootstrap_interval(values, seed=seed)
    return found if math.isfinite(found.low) or not values else bounded_interval(values, low, 1.0)


def _kappa_interval(tables: NDArray[np.float64], seed: int) -> Interval:
    """Return kappa of all pairs with a percentile bootstrap interval over prompts."""
    count = len(tables)
    kappa = float(cohen_kappa(tables.sum(0))) if count else math.nan
    if count < 2:
        return Interval(kappa, -math.inf, math.inf, count)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    resampled = cohen_kappa((drawn @ tables.reshape(count, 9)).reshape(RESAMPLES, 3, 3))
    finite = resampled[np.isfinite(resampled)]
    if not finite.size or np.ptp(finite) == 0:
        return Interval(kappa, -math.inf, math.inf, count)
    low, high = np.quantile(finite, [0.025, 0.975])
    return Interval(kappa, float(low), float(high), count)


def plain_numbers(value: Any) -> Any:
    """Return mappings of numbers as JSON can hold them: None for what is not finite."""
    if isinstance(value, Mapping):
        return {name: plain_numbers(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
