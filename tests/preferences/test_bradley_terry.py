"""Strengths from pairwise outcomes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.annotators.bradley_terry import EQUAL, PRIOR_GAMES, connected, pairs_to_ask, strengths
from lmrl.annotators.ranks import dense_ranks


@st.composite
def round_robins(draw):
    count = draw(st.integers(2, 6))
    pairs = list(itertools.combinations(range(count), 2))
    points = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(pairs), max_size=len(pairs)))
    return count, [(i, j, p) for (i, j), p in zip(pairs, points, strict=True)]


@given(round_robins())
def test_where_all_met_the_order_is_that_of_the_points(drawn):
    """Ford 1957; equal points give equal strengths, so ties stay ties."""
    count, outcomes = drawn
    points = [0.0] * count
    for i, j, p in outcomes:
        points[i] += p
        points[j] += 1 - p
    assert dense_ranks(strengths(count, outcomes), EQUAL) == dense_ranks(points)


@given(round_robins(), st.randoms())
def test_permuting_items_permutes_strengths(drawn, random):
    count, outcomes = drawn
    order = random.sample(range(count), count)
    moved = strengths(count, [(order[i], order[j], p) for i, j, p in outcomes])
    assert np.allclose([moved[order[i]] for i in range(count)], strengths(count, outcomes), atol=1e-9)


def test_two_items_by_hand():
    """One win: by symmetry s = -t, and the gradient is 1 - sigmoid(2s) + c (1/2 - sigmoid(s)) = 0."""
    first, second = strengths(2, [(0, 1, 1.0)])
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert first == pytest.approx(-second)
    assert 1 - sigmoid(2 * first) + PRIOR_GAMES * (0.5 - sigmoid(first)) == pytest.approx(0, abs=1e-10)
    assert strengths(2, [(0, 1, 0.5)]) == pytest.approx((0, 0))


def test_strengths_are_found_again_from_many_games():
    true = np.array([1.0, 0.3, -0.2, -1.1])
    outcomes = []
    for i, j in itertools.combinations(range(4), 2):
        share = 1 / (1 + math.exp(true[j] - true[i]))
        outcomes += [(i, j, 1.0)] * round(4000 * share) + [(i, j, 0.0)] * round(4000 * (1 - share))
    assert np.allclose(strengths(4, outcomes), true, atol=0.01)


def test_long_chains_of_wins_stay_finite_and_in_order():
    found = strengths(12, [(i, i + 1, 1.0) for i in range(11)])
    assert dense_ranks(found, EQUAL) == tuple(range(12)) and all(map(math.isfinite, found))


@given(st.integers(2, 12), st.data())
def test_pairs_join_everyone_and_share_the_work(count, data):
    everything = pairs_to_ask(list(range(count)))
    assert sorted(tuple(sorted(p)) for p in everything) == list(itertools.combinations(range(count), 2))
    limit = data.draw(st.integers(count - 1, len(everything)))
    pairs = pairs_to_ask(list(range(count)), limit)
    assert len(pairs) == limit and connected(count, pairs)
    met = [sum(i in pair for pair in pairs) for i in range(count)]
    assert max(met) - min(met) <= 2
    assert not connected(count, pairs[: count - 2])
