"""Losses of pairs and labelled answers: numbers worked out by hand, signs, and what their expectations are."""

import math

import pytest
import torch

from lmrl.algorithms.preference_losses import (
    PairLossSettings,
    hinge_loss,
    identity_loss,
    kahneman_tversky_loss,
    log_odds,
    pair_loss,
    robust_loss,
    sequence_logprobs,
    sigmoid_loss,
)
from lmrl.errors import SettingsError


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_rows_are_summed_or_averaged_over_their_tokens():
    logprobs = torch.tensor([[-1.0, -2.0, float("nan")], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    assert sequence_logprobs(logprobs, mask).tolist() == [-3, -3, 0]
    assert sequence_logprobs(logprobs, mask, average=True).tolist() == [-1.5, -3, 0]


def test_values_by_hand():
    # sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4.
    margin = column(math.log(3))
    assert sigmoid_loss(margin).item() == pytest.approx(-math.log(0.75))
    assert sigmoid_loss(margin, 0.1).item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))
    expected = (-0.9 * math.log(0.75) + 0.1 * math.log(0.25)) / 0.8
    assert robust_loss(margin, 0.1).item() == pytest.approx(expected)
    assert hinge_loss(column(-1, 0, 0.25, 1, 3)).tolist() == [2, 1, 0.75, 0, 0]
    assert identity_loss(column(0, 5, 7), 0.1).tolist() == [25, 0, 4], "the target is 1 / (2 beta) = 5"
    assert log_odds(column(math.log(0.5), math.log(0.8), math.log(0.1))).tolist() == pytest.approx(
        [0, math.log(4), -math.log(9)]
    )


def test_kto_by_hand():
    # Rewards log 3 above and below the reference point 0.5; good answers weigh 2, bad ones 3.
    rewards = 0.5 + column(math.log(3), math.log(3), -math.log(3), -math.log(3))
    desirable = torch.tensor([True, False, True, False])
    losses = kahneman_tversky_loss(rewards, 0.5, desirable, 2.0, 3.0)
    assert losses.tolist() == pytest.approx([2 * 0.25, 3 * 0.75, 2 * 0.75, 3 * 0.25])


def test_each_loss_pulls_the_right_way():
    for loss, smoothing in (("sigmoid", 0.0), ("sigmoid", 0.2), ("ipo", 0.0), ("hinge", 0.0), ("robust", 0.2)):
        gap = column(-3, 0, 0.1).requires_grad_()
        pair_loss(gap, PairLossSettings(beta=0.5, loss=loss, label_smoothing=smoothing)).sum().backward()
        assert (gap.grad < 0).all(), loss
    rewards = column(-1, -1, 2, 2).requires_grad_()
    kahneman_tversky_loss(rewards, 0.3, torch.tensor([True, False, True, False])).sum().backward()
    assert rewards.grad.sign().tolist() == [-1, 1, -1, 1]
    odds = column(-0.2, -3).requires_grad_()
    log_odds(odds).sum().backward()
    assert odds.grad.tolist() == pytest.approx([1 / (1 - math.exp(-0.2)), 1 / (1 - math.exp(-3))])


def test_what_is_past_its_target_is_left_or_pulled_back():
    gap = column(20).requires_grad_()
    pair_loss(gap, PairLossSettings(beta=0.5, loss="hinge")).backward()
    assert gap.grad.item() == 0
    gap = column(20).requires_grad_()
    pair_loss(gap, PairLossSettings(beta=0.5, loss="ipo")).backward()
    assert gap.grad.item() == pytest.approx(2 * (20 - 1)), "IPO wants a gap of 1 / (2 beta), no more"


def test_extremes_stay_finite():
    margin = torch.tensor([-1e4, 1e4], requires_grad=True)
    for losses in (sigmoid_loss(margin), sigmoid_loss(margin, 0.1), robust_loss(margin, 0.1)):
        assert torch.isfinite(losses).all()
    assert sigmoid_loss(margin).tolist() == [1e4, 0]
    certain = torch.tensor([0.0, 1e-7, -1e-7, -1e-5, -1e-3, -100.0], requires_grad=True)
    odds = log_odds(certain)
    odds.sum().backward()
    assert torch.isfinite(odds).all() and torch.isfinite(certain.grad).all()
    assert odds[3].item() == pytest.approx(math.log(1e5), rel=1e-4), (
        "1 - exp(-1e-5) in float32 would be off by percents"
    )
    assert odds[-1].item() == -100


def test_smoothing_of_one_order_is_the_flipped_loss_of_the_other():
    margin = torch.linspace(-5, 5, 11, dtype=torch.float64)
    both = 0.7 * sigmoid_loss(margin) + 0.3 * sigmoid_loss(-margin)
    assert torch.allclose(sigmoid_loss(margin, 0.3), both)


def test_robust_is_unbiased_under_flips():
    margin = torch.linspace(-5, 5, 11, dtype=torch.float64)
    flipped = 0.7 * robust_loss(margin, 0.3) + 0.3 * robust_loss(-margin, 0.3)
    assert torch.allclose(flipped, sigmoid_loss(margin))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 0}, "beta is 0"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"label_smoothing": 0.5}, r"below 0\.5"),
        ({"label_smoothing": -0.1}, r"below 0\.5"),
        ({"loss": "robust"}, "above 0"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "knows none"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "knows none"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, words):
    with pytest.raises(SettingsError, match=words):
        PairLossSettings(**settings)


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match="'square'"):
        pair_loss(column(0), PairLossSettings(loss="square"))
