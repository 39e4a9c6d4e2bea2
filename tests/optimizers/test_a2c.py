"""A2C against numbers worked out by hand."""

import pytest
import torch

from lmrl.errors import SettingsError

REWARDS, MASK = [[0.0, 1.0, 2.0], [4.0, 0.0, 0.0]], [[1, 1, 1], [1, 0, 0]]
VALUES = [[0.5, 1.0, 1.5], [1.0, 0.0, 0.0]]


def rollout(by_hand, **kwargs):
    return by_hand.rollout(REWARDS, MASK, values=VALUES, bootstrap_values=[9.0, 10.0], **kwargs)


@pytest.mark.parametrize(
    ("settings", "truncated", "expected"),
    [
        ({}, [False, False], [[2.5, 2.0, 0.5], [3.0, 0.0, 0.0]]),  # the return minus the value
        ({"gae_lambda": 0.0}, [False, False], [[0.5, 1.5, 0.5], [3.0, 0.0, 0.0]]),  # r + V(next) - V
        ({"gamma": 0.5}, [False, False], [[0.5, 1.0, 0.5], [3.0, 0.0, 0.0]]),  # 0 + 1/2 + 2/4 - 1/2
        ({}, [False, True], [[2.5, 2.0, 0.5], [13.0, 0.0, 0.0]]),  # only a truncated row bootstraps
    ],
)
def test_advantages_and_value_targets_by_hand(by_hand, settings, truncated, expected):
    found = by_hand.make("a2c", **settings).advantages(rollout(by_hand, truncated=truncated))
    assert torch.allclose(found.advantages, torch.tensor(expected))
    assert torch.allclose(found.extra["returns"], torch.tensor(expected) + torch.tensor(VALUES))


def test_whitening_is_over_all_actions_and_leaves_the_value_targets(by_hand):
    plain = by_hand.make("a2c").advantages(rollout(by_hand))
    found = by_hand.make("a2c", whiten_advantages=True).advantages(rollout(by_hand))
    inside = found.advantages[torch.tensor(MASK).bool()]
    assert inside.mean().abs() < 1e-6 and abs(inside.std(correction=0).item() - 1) < 1e-4
    assert torch.equal(found.extra["returns"], plain.extra["returns"])
    assert not found.advantages[~torch.tensor(MASK).bool()].any()


def test_the_loss_by_hand(by_hand):
    optimizer = by_hand.make("a2c", value_coefficient=0.5, entropy_coefficient=0.1)
    columns = {"values": [[3.5, 3.0, 2.0], [2.0, 7.0, 7.0]], "entropy": [[1.0, 2.0, 3.0], [4.0, 7.0, 7.0]]}
    table = by_hand.table([[-1.0, -2.0, -4.0], [-0.5, 7.0, 7.0]], **columns)
    found = optimizer.loss(table, by_hand.batch(optimizer, rollout(by_hand)))
    # -A log pi, then half the half squared error to the returns 3, 3, 2 and 4, then the entropy
    expected = [
        [2.5 + 0.25 * 0.25 - 0.1, 4.0 + 0.0 - 0.2, 2.0 + 0.0 - 0.3],
        [1.5 + 0.25 * 4.0 - 0.4, 0.0, 0.0],
    ]
    assert torch.allclose(found.losses, torch.tensor(expected))
    assert torch.allclose(found.metrics["value_loss"][0], torch.tensor([0.125, 0.0, 0.0]))


def test_one_step_follows_the_advantages_and_nothing_outside_the_mask(by_hand):
    values = by_hand.table([[-1.0] * 3] * 2, values=VALUES)
    found = by_hand.gradient(by_hand.make("a2c"), rollout(by_hand), values)
    assert torch.allclose(found, -torch.tensor([[2.5, 2.0, 0.5], [3.0, 0.0, 0.0]]) / 4)
    critic = by_hand.table([[-1.0] * 3] * 2, values=VALUES)
    found = by_hand.gradient(by_hand.make("a2c"), rollout(by_hand), critic, "values")
    assert torch.allclose(found, -0.5 * torch.tensor([[2.5, 2.0, 0.5], [3.0, 0.0, 0.0]]) / 4)
    assert by_hand.metrics["optimizer/steps"] == 1


def test_it_needs_values_and_nothing_else(by_hand):
    needs = by_hand.needs("a2c")
    assert needs.values and not needs.reference and needs.minimum_group_size == 1


@pytest.mark.parametrize("settings", [{"gamma": 1.5}, {"gamma": -0.1}, {"gae_lambda": 2.0}])
def test_bad_settings_are_refused(by_hand, settings):
    with pytest.raises(SettingsError, match=rf"{next(iter(settings))} is .*expected a number from 0 to 1"):
        by_hand.make("a2c", **settings)
