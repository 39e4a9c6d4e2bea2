"""SAPO against numbers worked out by hand; what it shares with GRPO is in test_grpo."""

import math

import pytest
import torch

from lmrl.errors import SettingsError

SETTINGS = {"normalise_std": False, "loss_aggregation": "token_mean", "temperature": 1.0, "negative_temperature": 3.0}
RATIOS = [1.0, 1.5, 0.5, 3.0]


def test_the_gate_fades_with_the_distance_and_faster_where_the_advantage_is_negative(by_hand):
    """d loss / d log pi = -r A / cosh(tau (r - 1) / 2)^2, because 4 sigmoid (1 - sigmoid)(x) = 1 / cosh(x / 2)^2."""
    rollout = by_hand.rollout([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]], group=[4, 4])
    table = by_hand.table([[math.log(ratio) for ratio in RATIOS]] * 2)
    found = by_hand.gradient(by_hand.make("sapo", **SETTINGS), rollout, table)
    expected = [
        [-advantage * ratio / math.cosh(temperature * (ratio - 1) / 2) ** 2 / 8 for ratio in RATIOS]
        for advantage, temperature in ((1.0, 1.0), (-1.0, 3.0))
    ]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)
    assert found[0, 0] == pytest.approx(-1 / 8) and found[1, 0] == pytest.approx(1 / 8), "whole at a ratio of 1"
    gates = [
        -one / advantage / ratio
        for row, advantage in zip(expected, (1, -1), strict=True)
        for one, ratio in zip(row, RATIOS, strict=True)
    ]
    assert by_hand.metrics["optimizer/gate"] == pytest.approx(sum(gates), rel=1e-5)


def test_the_value_of_the_loss(by_hand):
    """f(r) = 4 / tau sigmoid(tau (r - 1)): 2 / tau at a ratio of 1."""
    rollout = by_hand.rollout([[1.0, 0.0], [-1.0, 0.0]], group=[4, 4])
    optimizer = by_hand.make("sapo", **SETTINGS)
    losses = optimizer.loss(by_hand.table([[0.0, math.log(2.0)]] * 2), by_hand.batch(optimizer, rollout)).losses
    expected = [[-2.0, -4 / (1 + math.exp(-1.0))], [2 / 3, 4 / 3 / (1 + math.exp(-3.0))]]
    assert torch.allclose(losses, torch.tensor(expected))


def test_responses_count_alike_whatever_their_length(by_hand):
    mask = [[1, 1, 1], [1, 0, 0]]
    rollout = by_hand.rollout([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], mask, group=[4, 4])
    found = by_hand.gradient(by_hand.make("sapo", normalise_std=False), rollout, by_hand.table([[0.0] * 3] * 2))
    assert torch.allclose(found, torch.tensor([[-1 / 6] * 3, [1 / 2, 0.0, 0.0]]))


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_the_first_step_is_grpos(by_hand, aggregation):
    rollout = by_hand.rollout([[0.0, 2.0], [0.5, 0.0], [1.0, 1.5]], [[1, 1], [1, 0], [1, 1]], group=[2, 2, 2])
    sapo, grpo = (
        by_hand.gradient(by_hand.make(name, loss_aggregation=aggregation), rollout, by_hand.table([[0.0] * 2] * 3))
        for name in ("sapo", "grpo")
    )
    assert torch.allclose(sapo, grpo, atol=1e-6)


def test_a_run_raises_the_reward(train):
    def cats(prompts, responses):
        return [float(response.split().count("cat")) for response in responses]

    settings = {"epochs": 2, "minibatches": 2}
    records = train("sapo", reward=cats, settings=settings, group_size=8, updates=10, learning_rate=0.02)
    assert records[-1]["evaluation/reward"] > records[0]["evaluation/reward"] + 0.2


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"negative_temperature": float("inf")}])
def test_bad_settings_are_refused(by_hand, settings):
    with pytest.raises(SettingsError, match=r"temperature is .*; expected a finite number above 0"):
        by_hand.make("sapo", **settings)
