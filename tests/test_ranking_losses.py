"""Ranking losses against numbers worked out by hand and by enumerating orders."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.models.ranking_losses import bradley_terry, centring, pairwise_bradley_terry, plackett_luce


def batch(scores, ranks):
    scores = torch.tensor(scores, dtype=torch.float32)
    return scores, torch.tensor(ranks), torch.ones_like(scores, dtype=torch.bool)


def enumerated(scores, ranks):
    """Minus the log of the probability of every order that agrees with the ranks, added up one by one."""
    weights = [math.exp(score) for score in scores]
    total = 0.0
    for order in itertools.permutations(range(len(scores))):
        if any(ranks[a] > ranks[b] for a, b in itertools.pairwise(order)):
            continue
        left, chance = sum(weights), 1.0
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        total += chance
    return -math.log(total)


def test_bradley_terry_by_hand():
    # sigmoid(log 3) = 3 / 4
    loss = bradley_terry(torch.tensor([math.log(3), 0.0, 1.0]), torch.tensor([0.0, 0.0, 0.0]))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(2), math.log(1 + math.exp(-1))])
    with_margin = bradley_terry(torch.tensor([1 + math.log(3)]), torch.tensor([0.0]), 1.0)
    assert with_margin.tolist() == pytest.approx([math.log(4 / 3)])


@pytest.mark.parametrize("difference", [-1e30, -1e4, -200.0, 200.0, 1e4, 1e30])
def test_trap_37_bradley_terry_is_stable_at_any_margin(difference):
    better = torch.tensor([difference], requires_grad=True)
    loss = bradley_terry(better, torch.zeros(1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(max(0.0, -difference)) and better.grad.item() in (0.0, -1.0)


@pytest.mark.parametrize("difference", [-300.0, -3.0, 0.0, 0.7, 300.0])
def test_trap_37_at_two_answers_every_loss_is_bradley_terry(difference):
    scores, ranks, mask = batch([[difference, 0.0], [0.0, difference]], [[0, 1], [1, 0]])
    expected = bradley_terry(torch.tensor([difference] * 2), torch.zeros(2))
    torch.testing.assert_close(plackett_luce(scores, ranks, mask), expected)
    torch.testing.assert_close(pairwise_bradley_terry(scores, ranks, mask), expected)


def test_plackett_luce_by_hand():
    # Weights 3, 2, 1 in this order: 3/6 * 2/3 * 1/1 = 1/3; reversed: 1/6 * 2/5 = 1/15.
    weights = [math.log(3), math.log(2), 0.0]
    loss = plackett_luce(*batch([weights, weights], [[0, 1, 2], [2, 1, 0]]))
    assert loss.tolist() == pytest.approx([math.log(3), math.log(15)])
    # A tie above the last: both orders count, 3/6 * 2/3 + 2/6 * 3/4 = 7/12; a tie for last place: 3/6.
    tied = plackett_luce(*batch([weights, weights], [[0, 0, 1], [0, 1, 1]]))
    assert tied.tolist() == pytest.approx([math.log(12 / 7), math.log(2)])


SCORES = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=6)


@settings(max_examples=150, deadline=None)
@given(SCORES, st.data())
def test_trap_37_ties_are_the_sum_over_their_orders(scores, data):
    ranks = data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores)))
    [loss] = plackett_luce(*batch([scores], [ranks])).tolist()
    assert loss == pytest.approx(enumerated(scores, ranks), rel=1e-4, abs=1e-5)


def test_probabilities_of_all_outcomes_add_up_to_one():
    scores = [0.3, -1.2, 2.0, 0.9]
    outcomes = [[int(i not in first) for i in range(4)] for first in itertools.combinations(range(4), 2)]
    losses = plackett_luce(*batch([scores] * len(outcomes), outcomes))
    assert (-losses).exp().sum().item() == pytest.approx(1.0, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(SCORES, st.floats(-50, 50), st.data())
def test_trap_37_a_constant_shift_changes_nothing(scores, shift, data):
    ranks = data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores)))
    there = plackett_luce(*batch([scores], [ranks]))
    torch.testing.assert_close(
        plackett_luce(*batch([[s + shift for s in scores]], [ranks])), there, rtol=1e-4, atol=1e-4
    )


def test_trap_37_a_complete_tie_contributes_nothing():
    scores, ranks, mask = batch([[1.0, -2.0, 5.0]], [[4, 4, 4]])
    scores.requires_grad_(True)
    for loss in (plackett_luce(scores, ranks, mask), pairwise_bradley_terry(scores, ranks, mask)):
        assert loss.tolist() == [0.0]
        assert torch.autograd.grad(loss.sum(), scores)[0].tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("ranks", [[0, 0, 0, 1, 1], [0, 1, 1, 1, 2], [2, 1, 0, 1, 0]])
def test_losses_and_gradients_are_finite_at_any_scale(scale, ranks):
    for sign in (1, -1):
        scores, ranks_tensor, mask = batch([[sign * scale * s for s in (2.0, 1.0, 0.5, -1.0, -3.0)]], [ranks])
        scores.requires_grad_(True)
        loss = plackett_luce(scores, ranks_tensor, mask)
        [gradient] = torch.autograd.grad(loss.sum(), scores)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
        assert gradient.sum().item() == pytest.approx(0.0, abs=1e-4)


def test_gradients_of_ties_are_right():
    scores = torch.tensor([[0.3, -0.4, 1.1, 0.0]], dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(plackett_luce(scores, torch.tensor([[0, 0, 1, 2]]), scores > -9).sum(), scores)
    for place in range(4):
        moved = [[s + (place == i) * 1e-4 for i, s in enumerate(scores[0].tolist())] for _ in (0,)]
        back = [[s - (place == i) * 1e-4 for i, s in enumerate(scores[0].tolist())] for _ in (0,)]
        slope = (enumerated(moved[0], [0, 0, 1, 2]) - enumerated(back[0], [0, 0, 1, 2])) / 2e-4
        assert gradient[0, place].item() == pytest.approx(slope, abs=1e-5)


def test_a_large_tie_costs_no_enumeration():
    # Forty equal answers, half of them above the other half: 1 / C(40, 20) of all ways to choose the upper half.
    scores, ranks, mask = batch([[0.7] * 40], [[0] * 20 + [1] * 20])
    assert plackett_luce(scores, ranks, mask).item() == pytest.approx(math.log(math.comb(40, 20)), rel=1e-5)


def test_pairs_of_a_ranking_by_hand():
    scores, ranks, mask = batch([[1.0, 0.0, -1.0]], [[0, 1, 1]])
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2
    assert pairwise_bradley_terry(scores, ranks, mask).item() == pytest.approx(expected)
    margins = torch.zeros(1, 3, 3)
    margins[0, 0, 1], margins[0, 0, 2] = 1.0, 2.0
    assert pairwise_bradley_terry(scores, ranks, mask, margins).item() == pytest.approx(math.log(2))


def test_centring_by_hand():
    scores, _, mask = batch([[1.0, 2.0, -3.0]], [[0, 1, 2]])
    assert centring(scores, mask).item() == pytest.approx((9 + 4 + 1) / 3)
    assert centring(scores[:, :2], mask[:, :2]).item() == pytest.approx(9.0)


@pytest.mark.parametrize("loss", [plackett_luce, pairwise_bradley_terry, lambda s, r, m: centring(s, m)])
def test_padding_and_the_order_of_answers_change_nothing(loss):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 5, generator=generator)
    ranks = torch.randint(0, 4, (8, 5), generator=generator)
    mask = torch.arange(5)[None] < torch.tensor([2, 3, 4, 5, 2, 3, 4, 5])[:, None]
    together = loss(scores, ranks, mask)
    for row in range(8):
        count = int(mask[row].sum())
        order = torch.randperm(count, generator=generator)
        alone = loss(scores[row : row + 1, order], ranks[row : row + 1, order], mask[row : row + 1, order])
        torch.testing.assert_close(alone[0], together[row])
    dirty = torch.where(mask, scores, torch.full_like(scores, float("nan")))
    torch.testing.assert_close(loss(dirty, torch.where(mask, ranks, 9), mask), together)
