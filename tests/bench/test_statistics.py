"""Aggregates and their intervals, against scipy and against data whose truth is known."""

import numpy as np
import pytest
from bench_records import scores_of
from scipy.stats import binomtest, trim_mean

from lmrl.statistics.aggregates import (
    interquartile_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

TASKS = np.array([0.1, 0.4, 0.5, 0.9])


def draw(generator, seeds, shift=0.0):
    """Four tasks; the noise of every other one is skewed."""
    return [
        mean + shift + 0.15 * (generator.standard_normal(seeds) if i % 2 else generator.exponential(size=seeds) - 1)
        for i, mean in enumerate(TASKS)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 30])
def test_the_interquartile_mean_is_scipys(count):
    values = np.random.default_rng(count).standard_normal(count)
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25))
    assert interquartile_mean(values, np.full(count, 7.0)) == pytest.approx(trim_mean(values, 0.25))
    times = np.random.default_rng(count).integers(1, 4, count)
    often = np.repeat(values, times)
    if len(often) % 4 == count % 4 == 0:
        assert interquartile_mean(values, times.astype(float)) == pytest.approx(trim_mean(often, 0.25))


def test_an_outlier_moves_the_mean_and_not_the_interquartile_mean():
    tame, wild = np.arange(8.0), np.array([*range(7), 1e6])
    assert interquartile_mean(tame) == interquartile_mean(wild)


def test_a_cell_weighs_the_same_however_many_of_its_runs_failed():
    easy, hard = [0.9, 0.91, 0.92, 0.93], [0.1, 0.11, 0.12, 0.13]
    whole = interquartile_interval(scores_of([easy], [hard])).mean
    lost = interquartile_interval(scores_of([easy], [hard[:2]])).mean
    assert whole == pytest.approx(0.515) and abs(lost - whole) < 0.02, "with a weight for each run it would be 0.65"


def covers(seeds, repetitions=200):
    generator = np.random.default_rng(seeds)
    truth = float(interquartile_mean(np.concatenate(draw(generator, 100_000))))
    found = [
        interquartile_interval(scores_of(*([part] for part in draw(generator, seeds))), seed=i)
        for i in range(repetitions)
    ]
    return sum(one.low <= truth <= one.high for one in found), repetitions


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_intervals_cover_the_truth_as_often_as_they_say(seeds):
    hits, repetitions = covers(seeds)
    assert binomtest(hits, repetitions, 0.95).pvalue > 1e-4, f"{hits} of {repetitions}"


def test_three_seeds_are_covered_nearly_as_often():
    hits, repetitions = covers(3)
    assert hits > 0.8 * repetitions, "as docs/benchmarks.md says"


@pytest.mark.parametrize("together", [0.0, 0.5, 1.0])
def test_runs_of_one_seed_at_several_coefficients_are_no_independent_runs(together):
    """Normal noise about one mean, whose interquartile mean is that mean: three tasks at 3, 5 and 3 seeds."""
    generator, counts, repetitions = np.random.default_rng(3), (3, 5, 3), 300
    hits = 0
    for i in range(repetitions):
        tasks = []
        for _ in range(3):
            shared = generator.standard_normal(5)
            own = generator.standard_normal((3, 5))
            values = np.sqrt(together) * shared + np.sqrt(1 - together) * own
            tasks.append([[*row[:count]] for row, count in zip(values, counts, strict=True)])
        found = interquartile_interval(scores_of(*tasks), seed=i)
        hits += found.low <= 0 <= found.high
    assert hits > 0.9 * repetitions, f"{hits} of {repetitions}"


def test_profiles_fall_from_one_to_zero_and_count_the_runs_above():
    scores = scores_of(*([part] for part in draw(np.random.default_rng(0), 6)))
    thresholds = np.linspace(-1, 2, 20)
    found = performance_profile(scores, thresholds)
    assert [one.mean for one in found] == pytest.approx([float((scores.values > t).mean()) for t in thresholds])
    assert found[0].mean == 1 and found[-1].mean == 0
    assert all(0 <= one.low <= one.mean <= one.high <= 1 for one in found)
    assert found[0].low < 1 and found[-1].high > 0, "24 runs that are alike are no certainty"


def improvement(mine, baseline, **settings):
    return probability_of_improvement(scores_of(*mine), scores_of(*baseline), **settings)


def test_the_probability_of_improvement_by_hand():
    assert improvement([[[3.0, 1.0]]], [[[2.0, 1.0]]]).mean == (1 + 1 + 0 + 0.5) / 4
    assert improvement([[[1.0, 2.0]]], [[[1.0, 2.0]]]).mean == 0.5
    apart = improvement([[[5.0, 6.0]]], [[[1.0, 2.0]]])
    assert apart.mean == 1 and 0.2 < apart.low < 0.6, "two runs each are no proof"
    unequal = improvement([[[3.0, 1.0], [5.0, 5.0, 5.0, 5.0]]], [[[2.0, 1.0], [0.0, 0.0]]])
    assert unequal.mean == pytest.approx((0.625 + 1) / 2), "each cell weighs the same"


def test_the_probability_of_improvement_covers_the_truth():
    generator = np.random.default_rng(1)
    truth = 0.7602  # P(x + 1 > y) of two standard normals: Phi(1 / sqrt(2))
    hits = 0
    for i in range(100):
        mine, theirs = ([[generator.standard_normal(8) + shift] for _ in range(3)] for shift in (1, 0))
        one = improvement(mine, theirs, seed=i)
        hits += one.low <= truth <= one.high
    assert binomtest(hits, 100, 0.95).pvalue > 1e-4, f"{hits} of 100"


def test_what_is_missing_is_no_zero():
    assert interquartile_interval(scores_of([[1.0, 1.0, 1.0, None]], [[1.0, 1.0]])).mean == pytest.approx(1.0)
    assert interquartile_interval(scores_of()).count == 0
    half = improvement([[[None], [2.0, 3.0]]], [[[1.0], [0.0, 1.0]]])
    assert half.mean == 1, "over the cell that both have"


def test_a_cell_of_one_run_says_nothing_of_the_spread():
    several = [[1.0, 2.0, 3.0, 4.0, 5.0]]
    assert interquartile_interval(scores_of(several, [[2.0, 3.0]])).is_finite
    assert not interquartile_interval(scores_of(several, [[2.0]])).is_finite
    alone = improvement([*[[[1.0]]] * 7, several], [*[[[0.0]]] * 7, several])
    assert alone.low < 0.8, "eight cells, seven of which were run once"
    [share] = performance_profile(scores_of(several, *[[[9.0]]] * 7), [4.5])
    assert share.high - share.low > 0.3
