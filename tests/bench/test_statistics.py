"""Aggregates and their intervals, against scipy and against data whose truth is known."""

import numpy as np
import pytest
from scipy.stats import binomtest, trim_mean

from lmrl.bench.statistics import (
    interquartile_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from lmrl.errors import SettingsError

TASKS = np.array([0.1, 0.4, 0.5, 0.9])


def draw(generator, seeds, shift=0.0):
    """Four tasks; the noise of every other one is skewed."""
    return [
        mean + shift + 0.15 * (generator.standard_normal(seeds) if i % 2 else generator.exponential(size=seeds) - 1)
        for i, mean in enumerate(TASKS)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 30])
def test_the_interquartile_mean_is_scipys(count):
    values = np.random.default_rng(count).standard_normal((3, count))
    assert np.allclose(interquartile_mean(values), trim_mean(values, 0.25, axis=1))


def test_an_outlier_moves_the_mean_and_not_the_interquartile_mean():
    tame, wild = np.arange(8.0), np.array([*range(7), 1e6])
    assert interquartile_mean(tame) == interquartile_mean(wild)


def covers(seeds, repetitions=200):
    generator = np.random.default_rng(seeds)
    truth = float(interquartile_mean(np.concatenate(draw(generator, 100_000))))
    found = [interquartile_interval(draw(generator, seeds), seed=i) for i in range(repetitions)]
    return sum(one.low <= truth <= one.high for one in found), repetitions


@pytest.mark.parametrize("seeds", [5, 10])
def test_the_intervals_cover_the_truth_as_often_as_they_say(seeds):
    hits, repetitions = covers(seeds)
    assert binomtest(hits, repetitions, 0.95).pvalue > 1e-4, f"{hits} of {repetitions}"


def test_three_seeds_are_covered_nearly_as_often():
    hits, repetitions = covers(3)
    assert hits > 0.8 * repetitions, "as docs/benchmarks.md says"


def test_profiles_fall_from_one_to_zero_and_count_the_runs_above():
    scores = draw(np.random.default_rng(0), 6)
    thresholds = np.linspace(-1, 2, 20)
    found = performance_profile(scores, thresholds)
    pooled = np.concatenate(scores)
    assert [one.mean for one in found] == [float((pooled > t).mean()) for t in thresholds]
    assert found[0].mean == 1 and found[-1].mean == 0
    assert all(0 <= one.low <= one.mean <= one.high <= 1 for one in found)
    assert found[0].low < 1 and found[-1].high > 0, "24 runs that are alike are no certainty"


def test_the_probability_of_improvement_by_hand():
    found = probability_of_improvement([[3.0, 1.0]], [[2.0, 1.0]])
    assert found.mean == (1 + 1 + 0 + 0.5) / 4
    assert probability_of_improvement([[1.0, 2.0]], [[1.0, 2.0]]).mean == 0.5
    apart = probability_of_improvement([[5.0, 6.0]], [[1.0, 2.0]])
    assert apart.mean == 1 and 0.2 < apart.low < 0.6, "two runs each are no proof"


def test_the_probability_of_improvement_covers_the_truth():
    generator = np.random.default_rng(1)
    truth = 0.7602  # P(x + 1 > y) of two standard normals: Phi(1 / sqrt(2))
    hits = 0
    for i in range(100):
        mine = [generator.standard_normal(8) + 1 for _ in range(3)]
        hits += (
            (one := probability_of_improvement(mine, [generator.standard_normal(8) for _ in range(3)], seed=i)).low
            <= truth
            <= one.high
        )
    assert binomtest(hits, 100, 0.95).pvalue > 1e-4, f"{hits} of 100"


def test_what_is_missing_is_no_zero():
    assert interquartile_interval([[1.0, 1.0, 1.0, 1.0], [2.0]]).mean == pytest.approx(1.0)
    assert not interquartile_interval([[1.0], [2.0]]).is_finite, "one seed of each task says nothing of the spread"
    assert interquartile_interval([]).count == 0
    assert probability_of_improvement([[], [2.0, 3.0]], [[1.0], [0.0, 1.0]]).mean == 1
    assert np.isnan(probability_of_improvement([[]], [[1.0]]).mean)
    with pytest.raises(SettingsError, match="the same tasks of both"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
