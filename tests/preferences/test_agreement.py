"""Agreement between annotators, against published and independent numbers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from lmrl.annotators.agreement import (
    cohen_kappa,
    compare_annotators,
    krippendorff_alpha,
    share_interval,
    tau_b,
    verdict_table,
)
from lmrl.annotators.annotators import Judgement
from lmrl.annotators.habits import find_habits

RANKS = st.integers(2, 6).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n)] * 2))


@given(RANKS)
def test_tau_is_scipys(ranks):
    expected = kendalltau(*ranks, variant="b").statistic
    assert tau_b(*ranks) == pytest.approx(expected, nan_ok=True)


def test_alpha_is_krippendorffs():
    """The worked example of Krippendorff 2011, section C: four observers, twelve units, values missing; 0.815."""
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    assert krippendorff_alpha(*observers) == pytest.approx(0.815, abs=5e-4)


def test_alpha_at_its_ends():
    assert krippendorff_alpha([0, 1, 2, 0], [0, 1, 2, 0]) == 1.0
    assert krippendorff_alpha([0, 1] * 50, [1, 0] * 50) < -0.9
    assert math.isnan(krippendorff_alpha([1, 1], [1, 1])) and math.isnan(krippendorff_alpha([], []))


def test_kappa_by_hand():
    """Cohen 1960's formula: observed 0.7, expected 0.5 x 0.6 + 0.5 x 0.4 = 0.5, so 0.4."""
    table = np.array([[40.0, 0, 10], [0, 0, 0], [20, 0, 30]])
    assert float(cohen_kappa(table)) == pytest.approx(0.4)


@given(RANKS)
def test_the_order_of_completions_and_of_annotators_changes_nothing(ranks):
    first, second = ranks
    order = list(reversed(range(len(first))))
    moved = verdict_table([first[i] for i in order], [second[i] for i in order])
    assert (moved == verdict_table(first, second)).all()
    assert (verdict_table(second, first) == verdict_table(first, second).T).all()


def test_agreement_by_hand():
    first = {0: (0, 1, 2), 1: (0, 1), 2: (0, 0), 7: (0, 1)}
    second = {0: (0, 2, 1), 1: (0, 1), 2: (0, 1), 8: (1, 0)}
    found = compare_annotators(("a", "b"), first, second)
    assert (found.comparisons, found.pairs, found.strict_pairs) == (3, 5, 4)
    assert found.agreement.mean == pytest.approx(3 / 4) and found.exact.mean == pytest.approx(3 / 5)
    assert found.tau.mean == pytest.approx((1 / 3 + 1) / 2) and found.tau.count == 2
    assert 0 <= found.agreement.low <= 3 / 4 <= found.agreement.high <= 1
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_annotator_agrees_with_itself_and_not_with_its_opposite():
    generator = np.random.default_rng(0)
    ranks = {i: tuple(int(r) for r in generator.permutation(4)) for i in range(30)}
    same = compare_annotators(("a", "b"), ranks, ranks)
    assert same.agreement.mean == same.exact.mean == same.tau.mean == same.kappa.mean == same.alpha == 1
    assert same.agreement.low < 1, "thirty prompts do not prove that they always agree"
    opposite = compare_annotators(("a", "b"), ranks, {i: tuple(3 - r for r in row) for i, row in ranks.items()})
    assert opposite.agreement.mean == 0 and opposite.tau.mean == -1


def test_coin_flips_agree_by_chance():
    generator = np.random.default_rng(1)
    first, second = ({i: tuple(int(r) for r in generator.permutation(3)) for i in range(400)} for _ in range(2))
    found = compare_annotators(("a", "b"), first, second)
    assert found.agreement.low < 0.5 < found.agreement.high
    assert found.kappa.low < 0 < found.kappa.high and abs(found.alpha) < 0.1


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Prompts with six pairs that agree together or not at all: the interval must allow for that."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(100):
        hits = 6.0 * (generator.random(60) < 0.7)
        found = share_interval(hits, np.full(60, 6.0))
        covered += found.low <= 0.7 <= found.high
    assert covered >= 88


def test_nothing_in_common_is_no_error():
    found = compare_annotators(("a", "b"), {0: (0, 1)}, {1: (0, 1)})
    assert found.comparisons == found.pairs == 0 and math.isnan(found.agreement.mean)
    json.dumps(found.to_dict(), allow_nan=False)


@settings(max_examples=30)
@given(RANKS)
def test_one_prompt_is_no_error(ranks):
    json.dumps(compare_annotators(("a", "b"), {0: ranks[0]}, {0: ranks[1]}).to_dict(), allow_nan=False)


def test_habits_by_hand():
    def verdicts(*given):
        return {"verdicts": [list(verdict) for verdict in given]}

    judgements = {
        0: Judgement((0, 1), (), verdicts((0, 1, "A"), (1, 0, "B"))),
        1: Judgement((0, 0), (), verdicts((0, 1, "A"), (1, 0, "A"))),
        3: Judgement((1, 0), (), verdicts((0, 1, "B"), (1, 0, "TIE"))),
        4: Judgement((0, 1), (), verdicts((0, 1, "A"), (1, 0, ""))),
    }
    completions = [["long one", "short"], ["a", "b"], [], ["same", "size"], ["x", "xx"]]
    found = find_habits(judgements, completions)
    assert (found.judged, found.all_tied, found.pairs) == (4, 1, 3)
    assert found.tied_pairs.mean == pytest.approx(1 / 4) and found.longer_preferred.mean == pytest.approx(1 / 2)
    assert found.consistency.mean == pytest.approx(1 / 3) and found.first_preferred.mean == pytest.approx(4 / 6)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_reward_has_no_habits_of_position():
    found = find_habits({0: Judgement((0, 1))}, [["a", "b"]])
    assert found.consistency is None and found.first_preferred is None
    assert find_habits({}, []).judged == 0
