"""Held-out measures of reward models against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from lmrl.data import Ranking
from lmrl.stages.reward.data import RankedRows
from lmrl.stages.reward.measures import HeldOut, clustered_share, pair_accuracy
from lmrl.stages.reward.plots import plot_report


def item(prompt, ranks, lengths, scores=()):
    completions = tuple(f"answer {place}" for place in range(len(ranks)))
    rows = tuple((3,) * length for length in lengths)
    return RankedRows(rows, tuple(lengths), tuple(ranks), tuple(scores), Ranking(prompt, completions, ranks))


ITEMS = [
    item("a", (0, 1), (5, 3), (2.0, 1.0)),
    item("a", (0, 1), (2, 4), (1.0, 0.5)),
    item("b", (0, 1, 2), (6, 2, 2), (3.0, 2.0, 0.0)),
    item("c", (0, 0, 1), (1, 1, 9), (1.0, 1.0, 0.5)),
]
SCORES = [np.array(row) for row in ([1.0, 0.0], [0.0, 0.5], [0.0, 2.0, -1.0], [1.0, 2.0, 1.0])]
RIGHT = [1, 0, 0, 1, 1, 0.5, 1]
"""By pair: a's two, b's (0, 1), (0, 2), (1, 2), and c's (0, 2), (1, 2)."""


@pytest.fixture
def held_out():
    return HeldOut.of(ITEMS, SCORES)


def test_accuracy_counts_ties_by_half(held_out):
    report = held_out.report()
    assert (report.prompts, report.rankings, report.pairs) == (3, 4, 7)
    assert report.accuracy.mean == pytest.approx(sum(RIGHT) / 7) and report.accuracy.count == 3
    assert report.constant == 0.5
    for place, expected in enumerate([1.0, 0.0, 2 / 3, 0.75]):
        scores, ranks = torch.tensor(SCORES[place])[None], torch.tensor(ITEMS[place].ranks)[None]
        assert pair_accuracy(scores, ranks, torch.ones_like(ranks, dtype=torch.bool)).item() == pytest.approx(expected)


def test_length_by_hand(held_out):
    report = held_out.report()
    # Longer is better in a's first and in b's two; equal in b's (1, 2); shorter is better in the others.
    assert report.longer_wins.mean == pytest.approx((3 + 0.5) / 7)
    assert report.accuracy_where_longer_is_better.mean == pytest.approx((1 + 0 + 1) / 3)
    assert report.accuracy_where_shorter_is_better.mean == pytest.approx((0 + 0.5 + 1) / 3)
    assert report.longer_preferred.mean == pytest.approx((1 + 1 + 0 + 1 + 0.5 + 0) / 6)
    from scipy.stats import spearmanr

    lengths = [length for one in ITEMS for length in one.answer_lengths]
    assert report.score_length_spearman == pytest.approx(spearmanr(np.concatenate(SCORES), lengths).statistic)


def test_calibration_by_hand(held_out):
    report = held_out.report()
    gaps = [1.0, -0.5, -2.0, 1.0, 3.0, 0.0, 1.0]
    assert report.log_loss == pytest.approx(np.mean([math.log(1 + math.exp(-gap)) for gap in gaps]))
    confidence = [1 / (1 + math.exp(-abs(gap))) for gap in gaps]
    bins = {}
    for value, right in zip(confidence, RIGHT, strict=True):
        bins.setdefault(min(int((value - 0.5) / 0.05), 9), []).append((value, right))
    expected = sum(abs(sum(value for value, _ in part) - sum(right for _, right in part)) for part in bins.values())
    assert report.calibration_error == pytest.approx(expected / 7)
    assert sum(part.pairs for part in report.calibration) == 7


def test_margins_by_hand(held_out):
    report = held_out.report()
    assert [(part.low, part.pairs) for part in report.by_margin] == [(0.0, 1), (0.5, 1), (1.0, 3), (2.0, 1), (3.0, 1)]
    assert [part.accuracy for part in report.by_margin] == [0.5, 0.0, 1.0, 0.0, 1.0]
    by_gold = {part.mean: (part.accuracy, part.pairs) for part in report.by_gold_margin}
    assert by_gold == {0.5: (pytest.approx(0.5), 3), 1.0: (0.5, 2), 2.0: (1.0, 1), 3.0: (1.0, 1)}
    bare = [item("a", (0, 1), (1, 2))]
    assert HeldOut.of(bare, SCORES[:1]).report().by_gold_margin == []


def test_n_way_by_hand(held_out):
    report = held_out.report()
    assert report.n_way == 2 and report.top_1.mean == 0.5 and report.top_1_chance == pytest.approx((1 / 3 + 2 / 3) / 2)
    # b: two of three pairs agree, (2 - 1) / 3; c, with ties on both sides: 1 / sqrt(2 * 2).
    assert report.kendall_tau.mean == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_a_constant_is_no_better_than_chance():
    report = HeldOut.of(ITEMS, [np.zeros(len(one.ranks)) for one in ITEMS]).report()
    assert report.accuracy.mean == 0.5 and report.log_loss == pytest.approx(math.log(2))
    assert report.kendall_tau.mean == 0 and report.score_length_spearman == 0 and report.calibration_error == 0
    assert report.top_1.mean == pytest.approx(report.top_1_chance)


def test_intervals_are_over_prompts():
    """Pairs that agree within a prompt tell no more than one of them."""
    chance = np.random.default_rng(0)
    once = (chance.random(100) < 0.7).astype(float)
    clusters = np.arange(100)
    single = clustered_share(once, clusters)
    fivefold = clustered_share(np.repeat(once, 5), np.repeat(clusters, 5))
    assert fivefold.mean == pytest.approx(single.mean) and fivefold.count == 100
    assert fivefold.low == pytest.approx(single.low, abs=0.003)
    naive = clustered_share(np.repeat(once, 5), np.arange(500))
    assert naive.high - naive.low < 0.6 * (fivefold.high - fivefold.low)


def test_intervals_cover():
    """95% intervals of clusters of different size hold the truth about as often as they say."""
    chance = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        sizes = chance.integers(1, 6, 60)
        skill = chance.beta(6, 4, 60)
        clusters = np.repeat(np.arange(60), sizes)
        found = clustered_share((chance.random(len(clusters)) < skill[clusters]).astype(float), clusters)
        inside += found.low <= 0.6 <= found.high
    assert 0.92 <= inside / 400 <= 0.985


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_intervals_have_a_width_at_the_bounds(value):
    found = clustered_share(np.full(30, value), np.repeat(np.arange(10), 3))
    assert found.high - found.low > 0.2
    assert clustered_share(np.zeros(0), np.zeros(0, dtype=np.int64)).count == 0


def test_the_plot(tmp_path, held_out):
    assert plot_report(tmp_path, held_out.report(), held_out).read_bytes()[:4] == b"\x89PNG"


def test_kendalls_tau_has_an_interval_over_prompts_within_its_bounds():
    answers = [item(prompt, (0, 1, 2), (1, 2, 3)) for prompt in ("a", "a", "b", "c", "d")]
    tau = HeldOut.of(answers, [np.array([3.0, 2.0, 1.0])] * 5).report().kendall_tau
    assert tau.mean == tau.high == 1 and -1 < tau.low < 1 and tau.count == 4
