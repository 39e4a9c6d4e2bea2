"""CISPO against numbers worked out by hand; what it shares with GRPO is in test_grpo."""

import math

import pytest
import torch

from lmrl.errors import SettingsError

RATIOS = (9.0, 1.5, 0.5, 0.1)


def one_step(by_hand, **settings):
    """One step on answers of one token with the advantages 1, 1, -1 and -1."""
    optimizer = by_hand.make("cispo", normalise_std=False, **settings)
    rollout = by_hand.rollout([[1.0], [1.0], [-1.0], [-1.0]], group=[3] * 4, behavior=[[-3.0]] * 4)
    table = by_hand.table([[math.log(ratio) - 3.0] for ratio in RATIOS])
    return by_hand.gradient(optimizer, rollout, table).flatten() * 4


def test_trap_31_the_weight_is_bounded_and_detached_and_every_token_learns(by_hand):
    """The derivative of -w A log pi is -w A exactly when w is a number, whatever log pi is."""
    assert torch.allclose(one_step(by_hand), torch.tensor([-5.0, -1.5, 0.5, 0.1]))
    assert by_hand.metrics["optimizer/clip_fraction"] == 0.25
    assert by_hand.metrics["optimizer/ratio"] == pytest.approx(sum(RATIOS) / 4)


def test_trap_32_the_bounds_are_the_weights_own(by_hand):
    found = one_step(by_hand, weight_bound=1.2, weight_floor=0.8)
    assert torch.allclose(found, torch.tensor([-1.2, -1.2, 0.8, 0.8])), "not 1 + bound, and not swapped"
    assert by_hand.metrics["optimizer/clip_fraction"] == 1
    assert torch.allclose(one_step(by_hand, weight_bound=math.inf), torch.tensor([-9.0, -1.5, 0.5, 0.1]))


def test_the_loss_by_hand(by_hand):
    optimizer = by_hand.make("cispo", normalise_std=False)
    rollout = by_hand.rollout([[2.0], [0.0]], group=[0, 0], behavior=[[-1.0], [-1.0]])
    found = optimizer.loss(by_hand.table([[-1.0 + math.log(2.0)], [-3.0]]), by_hand.batch(optimizer, rollout))
    expected = [[-2.0 * (-1.0 + math.log(2.0))], [math.exp(-2.0) * -3.0]]
    assert torch.allclose(found.losses, torch.tensor(expected))


def test_the_mean_is_over_tokens_and_the_mask_is_respected(by_hand):
    mask = [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    rollout = by_hand.rollout([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0] * 3], mask, group=[0, 0, 1])
    table = by_hand.table([[0.0, 0.0, 0.0], [0.0, 7.0, 7.0], [7.0] * 3])
    found = by_hand.gradient(by_hand.make("cispo", normalise_std=False), rollout, table)
    assert torch.allclose(found, torch.tensor([[-1.0, -1.0, -1.0], [1.0, 0.0, 0.0], [0.0] * 3]) / 4)


def test_the_first_step_is_grpos(by_hand):
    rollout = by_hand.rollout([[0.0, 2.0], [0.5, 0.0], [1.0, 1.5]], [[1, 1], [1, 0], [1, 1]], group=[2, 2, 2])
    cispo = by_hand.gradient(by_hand.make("cispo"), rollout, by_hand.table([[0.0] * 2] * 3))
    grpo = by_hand.make("grpo", loss_aggregation="token_mean")
    assert torch.allclose(cispo, by_hand.gradient(grpo, rollout, by_hand.table([[0.0] * 2] * 3)))


def test_a_run_raises_the_reward(train):
    def cats(prompts, responses):
        return [float(response.split().count("cat")) for response in responses]

    settings = {"epochs": 2, "minibatches": 2}
    records = train("cispo", reward=cats, settings=settings, group_size=8, updates=10, learning_rate=0.02)
    assert records[-1]["evaluation/reward"] > records[0]["evaluation/reward"] + 0.2


@pytest.mark.parametrize("settings", [{"weight_bound": 0.5}, {"weight_floor": -0.1}, {"weight_floor": 1.5}])
def test_bad_settings_are_refused(by_hand, settings):
    with pytest.raises(SettingsError, match="expected a floor from 0 to 1 and a bound of 1 or more"):
        by_hand.make("cispo", **settings)
