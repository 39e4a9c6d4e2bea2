"""ORPO: one loss by hand, its signs, its first step, and a whole run."""

import math
from types import SimpleNamespace

import pytest
import torch

from lmrl.algorithms.experience import PairBatch, Responses
from lmrl.errors import SettingsError
from lmrl_orpo import ORPO, ORPOSettings


def loss_of(logprobs, coefficient):
    """The loss of one pair: a chosen answer of two tokens, a rejected one of one."""
    masks = torch.tensor([[1, 1], [1, 0]]).bool()
    policy = SimpleNamespace(evaluate=lambda side: SimpleNamespace(logprobs=logprobs[[side.inputs]]))
    pair = PairBatch(*(Responses(row, masks[[row]]) for row in range(2)))
    return ORPO(ORPOSettings(odds_coefficient=coefficient)).loss(policy, pair)


def test_the_loss_by_hand():
    # Geometric means: sqrt(0.5 * 0.32) = 0.4 with odds 2/3, and 0.2 with odds 1/4; the ratio of the odds is 8/3.
    logprobs = torch.tensor([[math.log(0.5), math.log(0.32)], [math.log(0.2), 0.0]])
    loss = loss_of(logprobs, 0.5)
    assert loss.metrics["nll"].item() == pytest.approx(-math.log(0.4))
    assert loss.metrics["log_odds_ratio"].item() == pytest.approx(math.log(8 / 3))
    assert loss.metrics["odds_loss"].item() == pytest.approx(-math.log(8 / 11)), "sigmoid(log x) = x / (1 + x)"
    assert loss.losses.item() == pytest.approx(-math.log(0.4) - 0.5 * math.log(8 / 11))


def test_chosen_tokens_are_pulled_up_and_rejected_ones_down():
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], requires_grad=True)
    loss_of(logprobs, 0.1).losses.sum().backward()
    assert (logprobs.grad[0] < 0).all() and logprobs.grad[1, 0] > 0 and logprobs.grad[1, 1] == 0
    plain = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], requires_grad=True)
    loss_of(plain, 0.0).losses.sum().backward()
    assert plain.grad.tolist() == [[-0.5, -0.5], [0, 0]], "without the odds it is fine-tuning, each answer weighing 1"


def test_certainty_stays_finite():
    logprobs = torch.zeros(2, 2, requires_grad=True)
    loss = loss_of(logprobs, 1.0)
    loss.losses.sum().backward()
    assert loss.losses.item() == pytest.approx(math.log(2)) and torch.isfinite(logprobs.grad).all()


def test_a_run_learns_the_chosen_answers_and_widens_the_margin(train, pairs):
    records = train("orpo", pairs, settings={"odds_coefficient": 1.0})
    assert records[-1]["optimizer/nll"] < records[1]["optimizer/nll"]
    assert records[-1]["optimizer/log_odds_ratio"] > records[1]["optimizer/log_odds_ratio"] + 0.5
    parts = records[1]["optimizer/nll"] + records[1]["optimizer/odds_loss"]
    assert records[1]["optimizer/loss"] == pytest.approx(parts, rel=1e-5)


def test_microbatches_change_no_gradient(one_update, pairs):
    whole, _ = one_update("orpo", pairs, 100_000)
    split, _ = one_update("orpo", pairs, 1)
    assert whole.abs().max() > 1e-4
    assert torch.allclose(whole, split, atol=1e-5 * float(whole.abs().max()))


def test_a_negative_weight_is_refused(train, pairs):
    with pytest.raises(SettingsError, match="odds_coefficient is -1"):
        train("orpo", pairs, settings={"odds_coefficient": -1.0})
