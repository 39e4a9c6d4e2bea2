"""REINFORCE against numbers worked out by hand."""

import pytest
import torch

from lmrl.errors import SettingsError

REWARDS, MASK = [[-1.0, 5.0], [2.0, 0.0]], [[1, 1], [1, 0]]


def test_the_baseline_is_that_of_past_batches(by_hand):
    optimizer = by_hand.make("reinforce", baseline_decay=0.5)
    rollout = by_hand.rollout(REWARDS, MASK)
    first, second, third = (optimizer.advantages(rollout).advantages for _ in range(3))
    assert torch.equal(first, torch.tensor([[4.0, 5.0], [2.0, 0.0]]))  # nothing is past: returns to go
    assert torch.equal(second, torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))  # the mean return of an episode, 3
    assert torch.equal(third, second)
    other = optimizer.advantages(by_hand.rollout([[7.0, 0.0], [0.0, 0.0]], MASK)).advantages
    assert torch.equal(other, torch.tensor([[4.0, -3.0], [-3.0, 0.0]]))
    assert optimizer.baseline == 0.5 * 3 + 0.5 * 3.5


def test_the_running_mean_survives_a_resume(by_hand):
    old, new = (by_hand.make("reinforce") for _ in range(2))
    new.load_state_dict(by_hand.make("reinforce").state_dict())
    assert new.baseline is None
    old.advantages(by_hand.rollout(REWARDS, MASK))
    new.load_state_dict(old.state_dict())
    rollout = by_hand.rollout([[1.0, 1.0], [0.0, 0.0]], MASK)
    assert torch.equal(old.advantages(rollout).advantages, new.advantages(rollout).advantages)


def test_one_step_by_hand(by_hand):
    found = by_hand.gradient(by_hand.make("reinforce"), by_hand.rollout(REWARDS, MASK), by_hand.table([[-1.0] * 2] * 2))
    assert torch.allclose(found, -torch.tensor([[4.0, 5.0], [2.0, 0.0]]) / 2)


def test_it_needs_nothing(by_hand):
    needs = by_hand.needs("reinforce")
    assert not (needs.values or needs.reference) and needs.minimum_group_size == 1


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_baseline_that_never_moves_or_overshoots_is_refused(by_hand, decay):
    with pytest.raises(SettingsError, match=r"baseline_decay is .*expected a number from 0 to below 1"):
        by_hand.make("reinforce", baseline_decay=decay)
