"""REINFORCE++ and its baseline form against numbers worked out by hand."""

import math

import pytest
import torch

from lmrl.errors import SettingsError

NAMES = ["reinforce_pp", "reinforce_pp_baseline"]
# Scores 4, 2 and 1, 3 on the last actions of two prompts' answers; the rest is the KL shaping of single tokens.
REWARDS = [[-0.5, 4.0], [1.0, 0.0], [0.0, 1.5], [3.0, 0.0]]
MASK = [[1, 1], [1, 0], [1, 1], [1, 0]]
SCORES, GROUP = [4.0, 1.0, 2.0, 3.0], [5, 9, 5, 9]
TO_GO = [[3.5, 4.0], [1.0, 0.0], [1.5, 1.5], [3.0, 0.0]]
CENTRED = [[0.5, 1.0], [-1.0, 0.0], [-1.5, -1.5], [1.0, 0.0]]  # minus the mean scores, 3 and 2


def rollout(by_hand, rewards=REWARDS):
    return by_hand.rollout(rewards, MASK, SCORES, GROUP)


@pytest.mark.parametrize(("name", "expected"), list(zip(NAMES, (TO_GO, CENTRED), strict=True)))
def test_returns_by_hand_keep_the_kl_of_each_token(by_hand, name, expected):
    found = by_hand.make(name, whiten_advantages=False).advantages(rollout(by_hand)).advantages
    assert torch.allclose(found, torch.tensor(expected))


@pytest.mark.parametrize(("name", "plain"), list(zip(NAMES, (TO_GO, CENTRED), strict=True)))
def test_whitening_is_over_the_actions_of_all_groups(by_hand, name, plain):
    found = by_hand.make(name).advantages(rollout(by_hand)).advantages
    mask = torch.tensor(MASK).bool()
    inside = torch.tensor(plain)[mask]
    assert torch.allclose(found[mask], (inside - inside.mean()) / inside.std(correction=0), atol=1e-5)
    assert not found[~mask].any()


@pytest.mark.parametrize("name", NAMES)
def test_rewards_that_are_all_alike_give_zero(by_hand, name):
    found = by_hand.make(name).advantages(by_hand.rollout([[0.0, 1.0]] * 4, group=GROUP)).advantages
    assert torch.equal(found, torch.zeros(4, 2))


@pytest.mark.parametrize(("name", "first"), [("reinforce_pp", 1.5), ("reinforce_pp_baseline", -1.5)])
def test_gamma_discounts_in_both_forms(by_hand, name, first):
    found = by_hand.make(name, gamma=0.5, whiten_advantages=False).advantages(rollout(by_hand)).advantages
    assert found[0, 0].item() == pytest.approx(first)  # -0.5 + 4 / 2, and the mean score 3 less


def test_trap_30_clipped_tokens_have_no_gradient(by_hand):
    optimizer = by_hand.make("reinforce_pp", whiten_advantages=False, clip_range=0.2)
    rewards = [[1.0], [1.0], [-1.0], [-1.0]]
    logs = [[math.log(ratio)] for ratio in (1.3, 0.7, 0.7, 1.3)]
    found = by_hand.gradient(optimizer, by_hand.rollout(rewards), by_hand.table(logs))
    assert torch.allclose(found, torch.tensor([[0.0], [-0.7], [0.0], [1.3]]) / 4)
    assert by_hand.metrics["optimizer/clip_fraction"] == 0.5
    assert by_hand.metrics["optimizer/ratio"] == pytest.approx(1.0)


def test_only_the_baseline_form_needs_groups(by_hand, train):
    for name, size in zip(NAMES, (1, 2), strict=True):
        assert by_hand.needs(name).minimum_group_size == size and not by_hand.needs(name).values
    with pytest.raises(SettingsError, match=r"at least 2 responses.*train\.group_size"):
        train("reinforce_pp_baseline", group_size=1)


@pytest.mark.parametrize("name", NAMES)
def test_bad_settings_are_refused(by_hand, name):
    with pytest.raises(SettingsError, match=r"clip_range is 0\.0; expected a number above 0"):
        by_hand.make(name, clip_range=0.0)
    with pytest.raises(SettingsError, match=r"gamma is 1\.5; expected a number from 0 to 1"):
        by_hand.make(name, gamma=1.5)
