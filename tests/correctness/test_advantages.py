"""Traps 20 to 27: who gets credit for what."""

from __future__ import annotations

import pytest
import torch
from trap_checks import check_20, check_24, check_26, check_27

from lmrl.algorithms import ops
from lmrl.algorithms.rollout import Rollout
from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.stages.rl import RLConfig, rl

TRUE = torch.ones(1, 4, dtype=torch.bool)


def gae(rewards, values, mask=None, truncated=False, **kwargs):
    rewards, values = torch.tensor(rewards), torch.tensor(values)
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else torch.tensor(mask)
    rows = len(rewards)
    return ops.generalized_advantages(
        rewards, values, torch.full((rows,), 2.0), mask, torch.full((rows,), truncated), **kwargs
    )


def test_trap_20_terminated_rows_bootstrap_nothing():
    check_20()


def test_trap_21_no_advantage_crosses_an_episodes_end():
    rewards, values = [[1.0, -2.0, 0.5], [9.0, 9.0, 9.0]], [[0.3, 0.1, 0.7], [5.0, 5.0, 5.0]]
    mask = [[True, True, False], [True, True, True]]
    together = gae(rewards, values, mask)
    alone = gae(rewards[:1], values[:1], mask[:1])
    assert torch.equal(together[:1], alone)
    assert torch.allclose(alone[:, :2], gae([[1.0, -2.0]], [[0.3, 0.1]]))


@pytest.mark.parametrize("truncated", [False, True])
def test_trap_22_tokens_that_were_not_sampled_are_transparent(truncated):
    mask = [[True, False, False, True, True, False]]
    rewards, values = [[1.0, 0.0, 0.0, -1.0, 2.0, 0.0]], [[0.5, 8.0, 9.0, 0.25, 0.75, 7.0]]
    full = gae(rewards, values, mask, truncated, gamma=0.9, lambda_=0.8)
    kept = [0, 3, 4]
    short = gae(
        [[rewards[0][i] for i in kept]], [[values[0][i] for i in kept]], None, truncated, gamma=0.9, lambda_=0.8
    )
    assert torch.allclose(full[:, kept], short)
    assert not full[0, [1, 2, 5]].any()


def test_trap_23_lambda_one_is_monte_carlo_and_lambda_zero_is_td():
    rewards, values = [[1.0, 0.0, 2.0]], [[0.5, 0.25, 1.0]]
    to_go = ops.returns_to_go(torch.tensor(rewards), TRUE[:, :3])
    assert torch.allclose(gae(rewards, values, lambda_=1.0), to_go - torch.tensor(values))
    assert torch.allclose(gae(rewards, values, lambda_=0.0), torch.tensor([[0.75, 0.75, 1.0]]))


def test_trap_24_whitening_survives_degenerate_input():
    check_24()


def rollout_of(scores, group):
    scores = torch.tensor(scores)
    mask = torch.ones(len(scores), 2, dtype=torch.bool)
    rewards = torch.stack([torch.zeros_like(scores), scores], 1)
    flags = torch.zeros(len(scores), dtype=torch.bool)
    return Rollout(None, mask, torch.zeros_like(rewards), rewards, scores, ~flags, flags, torch.tensor(group))


def make(name, **settings):
    spec = PluginManager().get("optimizer", name)
    return spec.build(build(spec.settings, settings))


def test_trap_25_a_leave_one_out_baseline_leaves_out_the_row_itself():
    found = make("rloo").advantages(rollout_of([1.0, 2.0, 6.0, 4.0], [7, 3, 7, 3])).advantages
    assert torch.allclose(found[:, 0], torch.tensor([1.0 - 6, 2.0 - 4, 6.0 - 1, 4.0 - 2]))


def test_trap_25_a_group_without_spread_gives_zero():
    found = make("grpo").advantages(rollout_of([5.0, 5.0, 5.0, 1.0, 3.0], [0, 0, 0, 1, 1])).advantages
    assert torch.equal(found[:3], torch.zeros(3, 2)) and found[3:].abs().min() > 0.5
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_trap_25_a_group_of_one_is_refused(tiny_folder, tmp_path, name):
    config = {"model": str(tiny_folder), "run": {"folder": str(tmp_path / "run")}, "optimizer": {"name": name}}
    with pytest.raises(SettingsError, match="group_size"):
        rl(build(RLConfig, config), progress=False)


def test_trap_26_samples_of_a_prompt_stay_together(toy):
    rollout = toy().rollout(rows=24, group_size=4)
    check_26(rollout.select(torch.randperm(24, generator=torch.Generator().manual_seed(3))))


def test_trap_27_value_clipping_uses_the_old_values_and_the_mask(toy):
    check_27()
    world = toy()
    torch.nn.init.ones_(world.policy.value_head.weight)
    rollout = world.rollout(rows=12)
    advantages = make("ppo").advantages(rollout)
    assert torch.equal(advantages.extra["old_values"], rollout.values)
