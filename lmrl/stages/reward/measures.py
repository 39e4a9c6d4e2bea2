"""Measures of a reward model on held-out rankings: accuracy, calibration, margins and length, in pure numpy.

A pair counts 1 if the better answer has the higher score and 1/2 if the scores are equal. Intervals are over prompts,
because pairs of one prompt share answers; conversations that begin alike are one prompt, as in the held-out split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmrl.data.layouts.conversations import opening
from lmrl.stages.reward.data import RankedRows
from lmrl.statistics.intervals import Interval, bounded_interval, group_means, wilson_interval

Numbers = NDArray[np.float64]
BINS = 10
"""Bins of equal width over the predicted probability, from 1/2 to 1."""
MARGIN_BINS = 5
"""Bins of equal count over a margin."""


def pair_accuracy(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Return the share of a ranking's pairs whose better answer scores higher, (R,), of (R, N) arguments."""
    ordered = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    gaps = scores[:, :, None] - scores[:, None, :]
    right = ((gaps > 0).float() + 0.5 * (gaps == 0).float()).masked_fill(~ordered, 0)
    return right.sum((1, 2)) / ordered.sum((1, 2)).clamp_min(1)


def clustered_share(values: Numbers, clusters: NDArray[np.int64]) -> Interval:
    """Return the mean of values in [0, 1] with a 95% interval over clusters.

    Wilson's interval with the effective number of trials p (1 - p) / v, where v is the variance of the ratio estimator
    over clusters (Korn and Graubard 1998), at most the number of values; ``count`` is the number of clusters.
    """
    if not len(values):
        return Interval(math.nan, 0.0, 1.0, 0)
    from scipy.stats import norm, t

    sums, counts = np.bincount(clusters, weights=values), np.bincount(clusters)
    sums, counts = sums[counts > 0], counts[counts > 0]
    number, share = len(counts), float(values.mean())
    if number < 2:
        return Interval(share, 0.0, 1.0, number)
    variance = number / (number - 1) * float(((sums - share * counts) ** 2).sum()) / float(counts.sum()) ** 2
    scale = float(norm.ppf(0.975) / t.ppf(0.975, number - 1)) ** 2
    effective = min(share * (1 - share) / variance * scale, float(len(values))) if variance else float(number)
    found = wilson_interval(min(share, 1.0) * effective, effective)
    return Interval(share, found.low, found.high, number)


@dataclass(frozen=True)
class Bin:
    """Pairs whose margin or probability lies between two bounds."""

    low: float
    high: float
    mean: float
    accuracy: float
    pairs: int


@dataclass(frozen=True)
class RewardReport:
    """Measures of a reward model on held-out rankings; shares and means with 95% intervals over prompts."""

    prompts: int
    rankings: int
    pairs: int
    accuracy: Interval
    longer_wins: Interval
    """The accuracy of preferring the longer answer; the constant's is 1/2."""
    accuracy_where_longer_is_better: Interval
    accuracy_where_shorter_is_better: Interval
    longer_preferred: Interval
    """Share of pairs of different length in which the model scores the longer answer higher."""
    score_length_spearman: float
    """Rank correlation of score and length over all answers."""
    log_loss: float
    """Mean of -log sigmoid(margin), nats per pair; log 2 without knowledge."""
    calibration_error: float
    """Expected calibration error of sigmoid(margin): mean distance of confidence and accuracy over ten bins."""
    calibration: list[Bin]
    by_margin: list[Bin]
    by_gold_margin: list[Bin]
    """Empty where the data give no scores."""
    n_way: int
    """Rankings of three answers or more, which the next three are about."""
    top_1: Interval
    """Share of them whose highest score is on a best answer."""
    top_1_chance: float
    kendall_tau: Interval
    """Mean over their prompts of Kendall's tau-b between scores and ranks."""
    constant: float = 0.5
    members: list[Interval] = field(default_factory=list)
    """Of an ensemble: each member's accuracy."""


@dataclass(frozen=True)
class HeldOut:
    """Scores of held-out rankings, and their pairs as columns: better minus worse."""

    items: Sequence[RankedRows]
    scores: list[Numbers]
    item_clusters: NDArray[np.int64]
    clusters: NDArray[np.int64]
    gaps: Numbers
    gold_gaps: Numbers
    better_lengths: Numbers
    worse_lengths: Numbers
    prompts: int

    @classmethod
    def of(cls, items: Sequence[RankedRows], scores: Sequence[Tensor | Numbers]) -> HeldOut:
        """Return the pairs of rankings with these scores."""
        numbers: dict[str, int] = {}
        columns: list[tuple[float, ...]] = []
        own = []
        plain = [np.asarray(row, dtype=np.float64) for row in scores]
        for item, row in zip(items, plain, strict=True):
            cluster = numbers.setdefault(opening(item.ranking.prompt), len(numbers))
            own.append(cluster)
            for i, better in enumerate(item.ranks):
                for j, worse in enumerate(item.ranks):
                    if better < worse:
                        gold = item.scores[i] - item.scores[j] if item.scores else math.nan
                        lengths = item.answer_lengths
                        columns.append((cluster, row[i] - row[j], gold, lengths[i], lengths[j]))
        table = np.asarray(columns, dtype=np.float64).reshape(-1, 5)
        return cls(
            items=items,
            scores=plain,
            item_clusters=np.array(own, dtype=np.int64),
            clusters=table[:, 0].astype(np.int64),
            gaps=table[:, 1],
            gold_gaps=table[:, 2],
            better_lengths=table[:, 3],
            worse_lengths=table[:, 4],
            prompts=len(numbers),
        )

    def accuracy(self) -> Interval:
        """Return the share of pairs that are ordered rightly."""
        return clustered_share(_right(self.gaps), self.clusters)

    def report(self, members: Sequence[Interval] = ()) -> RewardReport:
        """Return everything that there is to say."""
        from scipy.special import expit
        from scipy.stats import spearmanr

        right, size = _right(self.gaps), np.abs(self.gaps)
        longer = self.better_lengths - self.worse_lengths
        lengths = np.concatenate([np.asarray(item.answer_lengths, dtype=np.float64) for item in self.items])
        scores = np.concatenate(self.scores)
        constant = np.ptp(scores) == 0 or np.ptp(lengths) == 0
        confidence = expit(size)
        calibration = _bins(confidence, right, np.linspace(0.5, 1.0, BINS + 1))
        wide = [place for place, item in enumerate(self.items) if len(item.ranks) > 2]
        n_way = [(self.items[place], self.scores[place]) for place in wide]
        tops = np.array([_top_1(item, row) for item, row in n_way])
        taus = group_means([_kendall(item, row) for item, row in n_way], self.item_clusters[wide].tolist())
        known = np.isfinite(self.gold_gaps)
        differ = longer != 0
        return RewardReport(
            prompts=self.prompts,
            rankings=len(self.items),
            pairs=len(right),
            accuracy=self.accuracy(),
            longer_wins=clustered_share(_right(longer), self.clusters),
            accuracy_where_longer_is_better=clustered_share(right[longer > 0], self.clusters[longer > 0]),
            accuracy_where_shorter_is_better=clustered_share(right[longer < 0], self.clusters[longer < 0]),
            longer_preferred=clustered_share(_right((self.gaps * np.sign(longer))[differ]), self.clusters[differ]),
            score_length_spearman=0.0 if constant else float(spearmanr(scores, lengths).statistic),
            log_loss=float(np.logaddexp(0.0, -self.gaps).mean()),
            calibration_error=sum(part.pairs * abs(part.mean - part.accuracy) for part in calibration) / len(right),
            calibration=calibration,
            by_margin=_bins(size, right, _quantiles(size)),
            by_gold_margin=_bins(self.gold_gaps[known], right[known], _quantiles(self.gold_gaps[known])),
            n_way=len(n_way),
            top_1=clustered_share(tops, self.item_clusters[wide]),
            top_1_chance=float(np.mean([item.ranks.count(0) / len(item.ranks) for item, _ in n_way] or [math.nan])),
            kendall_tau=bounded_interval(taus, -1, 1),
            members=list(members),
        )


def _right(gaps: Numbers) -> Numbers:
    """Return 1 where the better answer is ahead, 1/2 where the two are equal, else 0."""
    return (np.sign(gaps) + 1) / 2


def _quantiles(values: Numbers) -> Numbers:
    """Return the edges of bins of about equal count; few distinct values have a bin each."""
    distinct = np.unique(values)
    if len(distinct) <= MARGIN_BINS:
        return np.append(distinct, np.inf)
    return np.unique(np.append(np.quantile(values, np.linspace(0, 1, MARGIN_BINS + 1)[:-1]), np.inf))


def _bins(values: Numbers, right: Numbers, edges: Numbers) -> list[Bin]:
    found = []
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    for number in np.unique(place):
        inside = place == number
        part = values[inside]
        found.append(
            Bin(
                float(part.min()), float(part.max()), float(part.mean()), float(right[inside].mean()), int(inside.sum())
            )
        )
    return found


def _top_1(item: RankedRows, scores: Numbers) -> float:
    """Return the share of best answers among those with the highest score."""
    return float(np.mean([item.ranks[place] == 0 for place in np.flatnonzero(scores == scores.max())]))


def _kendall(item: RankedRows, scores: Numbers) -> float:
    from scipy.stats import kendalltau

    if np.ptp(scores) == 0:
        return 0.0
    return float(kendalltau(scores, -np.asarray(item.ranks)).statistic)
