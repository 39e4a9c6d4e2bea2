"""REBEL against numbers worked out by hand."""

import math

import pytest
import torch

from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.stages.rl import RLConfig
from lmrl.stages.rl.checks import check_settings

ONCE = {"epochs": 1}


def test_the_loss_is_the_squared_error_of_the_regression(by_hand):
    """Sums of log-ratios 0.2 and -0.5, returns 1.5 (with the KL's -0.5) and 1: 0.7 / eta - 0.5, squared."""
    rollout = by_hand.rollout([[-0.5, 2.0], [1.0, 0.0]], [[1, 1], [1, 0]], scores=[2.0, 1.0], group=[3, 3])
    table, eta = by_hand.table([[0.5, -0.3], [-0.5, 9.0]]), 2.0
    found = by_hand.gradient(by_hand.make("rebel", eta=eta, **ONCE), rollout, table)
    slope = 2 * (0.7 / eta - 0.5) / eta
    assert torch.allclose(found, torch.tensor([[slope, slope], [-slope, 0.0]]))
    assert by_hand.metrics["optimizer/loss"] == pytest.approx((0.7 / eta - 0.5) ** 2)
    assert by_hand.metrics["optimizer/log_ratio_gap"] == pytest.approx(0.7)
    assert by_hand.metrics["optimizer/return_difference"] == pytest.approx(0.5)
    assert by_hand.metrics["optimizer/residual"] == pytest.approx(abs(0.7 / eta - 0.5))


def test_log_ratios_are_those_to_the_policy_at_the_start_of_the_update(by_hand):
    rollout = by_hand.rollout([[1.0], [0.0]], group=[0, 0], behavior=[[-1.0], [-2.0]])
    by_hand.gradient(by_hand.make("rebel", **ONCE), rollout, by_hand.table([[-1.0], [-2.0]]))
    assert by_hand.metrics["optimizer/log_ratio_gap"] == 0 and by_hand.metrics["optimizer/loss"] == 1


def test_every_two_responses_to_a_prompt_are_a_pair_and_unscored_ones_in_none(by_hand):
    rewards = [[1.0], [5.0], [0.0], [3.0], [7.0], [2.0]]
    rollout = by_hand.rollout(rewards, group=[8, 9, 8, 8, 9, 9], truncated=[False] * 4 + [True, False])
    pairs = by_hand.make("rebel").pairs(rollout)
    assert len(pairs) == 6, "three of each group"
    kept = pairs.action_mask.any(1)
    found = zip(pairs.chosen["returns"][kept].tolist(), pairs.rejected["returns"][kept].tolist(), strict=True)
    assert sorted(found) == [(1.0, 0.0), (3.0, 0.0), (3.0, 1.0), (5.0, 2.0)]


def test_it_is_solved_by_the_policy_times_the_exponential_of_the_returns(by_hand):
    returns, eta = [1.0, -0.5, 0.25], 0.7
    rollout = by_hand.rollout([[one] for one in returns], group=[0] * 3, behavior=[[-1.0], [-2.0], [-1.5]])
    solution = [[old + eta * one + 0.4] for old, one in zip((-1.0, -2.0, -1.5), returns, strict=True)]
    found = by_hand.gradient(by_hand.make("rebel", eta=eta, **ONCE), rollout, by_hand.table(solution))
    assert torch.allclose(found, torch.zeros(3, 1), atol=1e-6) and by_hand.metrics["optimizer/loss"] < 1e-10


def test_all_pairs_of_a_group_are_the_spread_of_its_errors(by_hand):
    """Sum over pairs of (e_i - e_j)^2 = K sum of (e_i - mean)^2: the mean over pairs is twice e's unbiased variance."""
    returns = torch.tensor([1.0, -0.5, 0.25, 3.0])
    rollout = by_hand.rollout(returns[:, None].tolist(), group=[0] * 4)
    by_hand.gradient(by_hand.make("rebel", **ONCE), rollout, by_hand.table([[0.3], [0.1], [-0.2], [0.0]]))
    errors = torch.tensor([0.3, 0.1, -0.2, 0.0]) - returns
    assert by_hand.metrics["optimizer/loss"] == pytest.approx(2 * float(errors.var()), rel=1e-5)


def test_a_penalty_in_the_loss_is_refused():
    plugins = PluginManager()
    spec = plugins.get("optimizer", "rebel")
    config = build(RLConfig, {"kl": {"placement": "loss"}, "train": {"group_size": 2}})
    with pytest.raises(SettingsError, match=r"'rebel' learns from pairs.*set kl\.placement=reward"):
        check_settings(config, spec, spec.settings())


def test_a_run_raises_the_reward(train):
    def cats(prompts, responses):
        return [float(response.split().count("cat")) for response in responses]

    records = train("rebel", reward=cats, group_size=4, updates=10, learning_rate=0.02)
    assert records[-1]["evaluation/reward"] > records[0]["evaluation/reward"] + 0.2
    assert math.isfinite(records[-1]["optimizer/residual"])


@pytest.mark.parametrize("eta", [0.0, float("inf")])
def test_bad_settings_are_refused(by_hand, eta):
    with pytest.raises(SettingsError, match=r"eta is .*; expected a finite number above 0"):
        by_hand.make("rebel", eta=eta)
