"""Ranks: from scores, to pairs and back."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.annotators.ranks import all_tied, compact_ranks, dense_ranks, ranked_pairs

SCORES = st.lists(st.floats(-100, 100), min_size=1, max_size=7)
RANKS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@given(SCORES, st.floats(0, 5))
def test_ranks_are_dense_and_follow_the_scores(scores, tolerance):
    ranks = dense_ranks(scores, tolerance)
    assert set(ranks) == set(range(max(ranks) + 1))
    for i, j in itertools.permutations(range(len(scores)), 2):
        if scores[i] >= scores[j]:
            assert ranks[i] <= ranks[j]
        if ranks[i] == ranks[j]:
            assert abs(scores[i] - scores[j]) <= tolerance


@given(SCORES, st.floats(0, 5), st.randoms())
def test_ranks_do_not_depend_on_the_order(scores, tolerance, random):
    order = random.sample(range(len(scores)), len(scores))
    ranks = dense_ranks(scores, tolerance)
    assert dense_ranks([scores[i] for i in order], tolerance) == tuple(ranks[i] for i in order)


def test_small_steps_do_not_chain():
    assert dense_ranks([0.0, -0.6, -1.2, -1.8], tolerance=1.0) == (0, 0, 1, 1)


@given(RANKS)
def test_pairs_give_the_ranks_back(ranks):
    """The longest chain of pairs above a completion is its rank."""
    pairs = ranked_pairs(ranks)
    above = {i: [b for b, w in pairs if w == i] for i in range(len(ranks))}

    def depth(index):
        return max((depth(better) + 1 for better in above[index]), default=0)

    assert tuple(depth(i) for i in range(len(ranks))) == compact_ranks(ranks)


@given(RANKS)
def test_policies_choose_among_all_pairs(ranks):
    pairs = ranked_pairs(ranks)
    adjacent, best_worst = ranked_pairs(ranks, "adjacent"), ranked_pairs(ranks, "best_worst")
    assert set(adjacent) <= set(pairs) and set(best_worst) <= set(pairs)
    assert len(best_worst) == (0 if all_tied(ranks) else 1)
    assert {ranks[i] for pair in adjacent for i in pair} == (set() if all_tied(ranks) else set(ranks))
    for better, worse in best_worst:
        assert ranks[better] == min(ranks) and ranks[worse] == max(ranks)


@pytest.mark.parametrize("policy", ["all", "adjacent", "best_worst"])
def test_ties_make_no_pair(policy):
    assert ranked_pairs([0, 0, 0], policy) == [] and ranked_pairs([3], policy) == []
