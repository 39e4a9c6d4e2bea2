"""The optimizer plugins train a plain Gymnasium task through the hooks and the updates that train text."""

import gymnasium
import pytest
import torch

from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl_control import ControlConfig, evaluate_control, train_control
from lmrl_control.collect import Collector, make_rollout
from lmrl_control.policy import ActorCritic, ControlPolicy

SOLVED = 475
"""The threshold that Gymnasium registers for CartPole-v1."""


def config_of(name, table=None, **sections):
    return build(ControlConfig, {"optimizer": {"name": name, name: table or {}}, **sections})


def test_ppo_solves_cartpole():
    table = {"gamma": 0.99, "gae_lambda": 0.95, "value_clip_range": 0.0}
    result = train_control(config_of("ppo", table), progress=False)
    returns = evaluate_control(result.module, "CartPole-v1", episodes=20, seed=1000)
    assert gymnasium.spec("CartPole-v1").reward_threshold == SOLVED
    assert sum(returns) / len(returns) >= SOLVED


def test_reinforce_learns_it_too():
    config = config_of("reinforce", {"loss_aggregation": "token_mean"}, train={"updates": 25, "learning_rate": 0.01})
    returns = train_control(config, progress=False).returns
    assert sum(returns[-20:]) / 20 > 2 * sum(returns[:50]) / 50


def test_rows_are_episodes_and_what_is_cut_is_bootstrapped():
    module = ActorCritic(4, 2, [8])
    torch.nn.init.constant_(module.critic[-1].bias, 3.0)
    collector = Collector([gymnasium.make("CartPole-v1") for _ in range(2)], seed=0)
    pieces = collector.collect(module, 60)
    rollout = make_rollout(module, pieces, with_values=True)
    assert int(rollout.action_mask.sum()) == 120
    assert torch.equal(rollout.truncated, ~rollout.terminated)
    assert int(rollout.truncated.sum()) <= 2, "only what was being played at the end is cut"
    assert rollout.bootstrap_values.tolist() == pytest.approx([3.0] * len(pieces))
    assert rollout.scores.tolist() == [len(piece.actions) for piece in pieces], "CartPole pays 1 per step"
    outside = ~rollout.action_mask
    for column in (rollout.rewards, rollout.sampler_logprobs, rollout.values):
        assert not column[outside].any()


def test_an_episode_goes_on_in_the_next_update():
    collector = Collector([gymnasium.make("CartPole-v1")], seed=0)
    first = collector.collect(ActorCritic(4, 2, [8]), 5)
    second = collector.collect(ActorCritic(4, 2, [8]), 5)
    assert first[-1].after is second[0].observations[0]


def test_sampled_log_probabilities_are_those_of_the_policy():
    module = ActorCritic(4, 2, [8])
    collector = Collector([gymnasium.make("CartPole-v1") for _ in range(3)], seed=0)
    rollout = make_rollout(module, collector.collect(module, 30), with_values=False)
    again = ControlPolicy(module).evaluate(rollout).logprobs
    assert torch.allclose(again, rollout.sampler_logprobs, atol=1e-6)


def test_the_same_seed_gives_the_same_run():
    config = config_of("ppo", train={"updates": 3})
    runs = [train_control(config, progress=False) for _ in range(2)]
    learned = [
        [{name: value for name, value in one.items() if not name.startswith("time/")} for one in run.metrics]
        for run in runs
    ]
    assert learned[0] == learned[1] and runs[0].returns == runs[1].returns


def test_bad_input_is_refused():
    with pytest.raises(SettingsError, match="Discrete"):
        train_control(config_of("ppo", environment="Pendulum-v1"), progress=False)
    with pytest.raises(SettingsError, match="did you mean"):
        train_control(config_of("pppo"), progress=False)


HEADED = """
from lmrl import Needs, OptimizerSettings, OptimizerSpec, PolicyOptimizer, hookimpl

class Headed(PolicyOptimizer):
    def heads(self, width, actions):
        return {}

@hookimpl
def lmrl_optimizers():
    yield OptimizerSpec("headed", Headed, OptimizerSettings, Needs(), "Adds heads")
"""


def test_an_optimizer_with_heads_is_refused(tmp_path):
    (tmp_path / "headed.py").write_text(HEADED)
    plugins = PluginManager([tmp_path / "headed.py"])
    with pytest.raises(SettingsError, match="'headed' adds heads to a language model"):
        train_control(build(ControlConfig, {"optimizer": {"name": "headed"}}), plugins=plugins, progress=False)
