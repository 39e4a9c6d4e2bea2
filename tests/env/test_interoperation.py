"""Gymnasium's checkers, wrappers, specs and processes; Stable-Baselines3 and its MaskablePPO."""

import copy
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from lmrl.envs import TextGenVectorEnv
from lmrl.models import load

ID = "lmrl:TextGen-v0"
EOS = 1


@pytest.fixture
def strict():
    """Turn every warning into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("changes", [{}, {"observe_action_mask": True}, {"reference": False, "on_length": "truncate"}])
def test_gymnasiums_checker(keywords, strict, changes, capsys):
    check_env(gym.make(ID, **{**keywords, **changes}).unwrapped)


def test_the_default_passes_gymnasiums_checker(strict, capsys):
    check_env(gym.make(ID, reference=False).unwrapped)


def test_stable_baselines_checker(keywords, strict):
    from stable_baselines3.common.env_checker import check_env as check

    check(gym.make(ID, **keywords).unwrapped)


def test_make_wants_no_torch():
    code = (
        "import sys, gymnasium as gym, lmrl.envs\n"
        "env = gym.make('lmrl:TextGen-v0'); env.reset(seed=0)\n"
        "envs = gym.make_vec('lmrl:TextGen-v0', num_envs=2, reference=False); envs.reset(seed=0)\n"
        "for _ in range(70): envs.step([3, 4])\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_default_environment_plays():
    env = gym.make(ID)
    _, info = env.reset(seed=0)
    reward, ended = 0.0, False
    while not ended:
        token = env.unwrapped.task.card.eos_ids[0] if info.get("ref_logprob") else 5
        _, reward, terminated, truncated, info = env.step(token)
        ended = terminated or truncated
    assert info["finish_reason"] == "eos" and reward == info["score"] and info["ref_logprob"] < 0


def test_make_vec_gives_the_native_one(keywords, strict):
    envs = gym.make_vec(ID, num_envs=3, **keywords)
    assert isinstance(envs, TextGenVectorEnv) and envs.num_envs == 3 and envs.spec.id == "TextGen-v0"
    same = gym.make_vec(ID, num_envs=3, autoreset_mode="SameStep", max_episode_steps=2, **keywords)
    assert same.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP and same.max_episode_steps == 2
    again = gym.make_vec(EnvSpec.from_json(same.spec.to_json()))
    assert again.num_envs == 3 and again.autoreset_mode == AutoresetMode.SAME_STEP and again.max_episode_steps == 2


@pytest.mark.parametrize(
    "changes", [{}, {"beta": 0.1, "stop_strings": ["far"], "forbidden_tokens": [2], "temperature": 0.5}]
)
def test_a_spec_round_trips_through_json(keywords, changes, assert_equal):
    env = gym.make(ID, **{**keywords, **changes})
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.task.spec == env.unwrapped.task.spec
    for one, other in zip(env.reset(seed=1), again.reset(seed=1), strict=True):
        assert_equal(one, other)


def test_specs_share_live_models(keywords):
    live = load(keywords["model"])
    live.model.requires_grad_(False)
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(ID, **{**keywords, "model": live}))
    assert env.spec.kwargs["model"] is live and copy.deepcopy(env.spec).kwargs["model"] is live
    assert env.unwrapped.task.reference.load() is live


def test_reset_is_needed_through_makes_wrappers(keywords):
    env = gym.make(ID, **keywords)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(5)
    env.reset()
    env.step(EOS)
    with pytest.raises(gym.error.ResetNeeded, match="after the episode's end"):
        env.step(5)


def test_wrappers(keywords):
    env = gym.make(ID, max_episode_steps=2, **keywords)
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.FlattenObservation(env))
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space and observation.shape == (10 + 10 + 1,)
    env.step(5)
    observation, _, terminated, truncated, info = env.step(5)
    assert truncated and not terminated and info["episode"]["l"] == 2 and "text" not in info
    env = gym.wrappers.TransformReward(gym.make(ID, **keywords), lambda reward: 2 * reward)
    env.reset(seed=0)
    _, reward, *_, info = env.step(EOS)
    assert info["finish_reason"] == "eos" and reward == 2 * info["score"]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_vector_wrappers(keywords, mode):
    envs = gym.make_vec(ID, num_envs=3, autoreset_mode=mode, **keywords)
    envs = gym.wrappers.vector.DictInfoToList(gym.wrappers.vector.RecordEpisodeStatistics(envs))
    envs.reset(seed=0)
    infos = envs.step([EOS, 5, 5])[-1]
    final = infos[0] if mode == "NextStep" else infos[0]["final_info"]
    assert final["finish_reason"] == "eos" and infos[0]["episode"]["l"] == 1 and "text" not in infos[1]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_processes(keywords, context):
    """In a process of its own, because a fork of this one would inherit the threads of other tests."""
    code = f"""
import functools, gymnasium as gym, numpy as np
if __name__ == "__main__":
    make = functools.partial(gym.make, {ID!r}, **{keywords!r})
    envs = gym.vector.AsyncVectorEnv([make] * 2, context={context!r})
    native = gym.make_vec({ID!r}, num_envs=2, **{keywords!r})
    for one, other in zip(envs.reset(seed=3)[0].values(), native.reset(seed=3)[0].values()):
        assert (one == other).all()
    for actions in ([5, 4], [{EOS}, 6], [5, 5], [4, 4]):
        found, expected = envs.step(np.array(actions)), native.step(actions)
        assert all((found[0][key] == expected[0][key]).all() for key in expected[0])
        assert np.allclose(found[1], expected[1]) and (found[2] == expected[2]).all()
        assert np.allclose(found[4]["ref_logprob"], expected[4]["ref_logprob"], atol=1e-5)
    try:
        envs.step(np.array([99, 5]))
    except Exception as error:
        assert type(error).__name__ == "InvalidAction", error
    envs.close(terminate=True)
    print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "done\n", done.stderr


def test_ppo_learns(keywords, strict):
    """PPO of Stable-Baselines3 learns to prefer the one word that pays."""
    from stable_baselines3 import PPO

    def happiness(prompts, responses):
        return [response.split().count("happy") / 4 for response in responses]

    changes = {"reward": happiness, "reward_settings": None, "reference": False, "max_new_tokens": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's own, of a render mode that Stable-Baselines3 asks for
        from stable_baselines3.common.env_util import make_vec_env

        envs = make_vec_env(ID, n_envs=4, seed=0, env_kwargs={**keywords, **changes})
    agent = PPO(
        "MultiInputPolicy", envs, n_steps=32, batch_size=64, n_epochs=10, learning_rate=3e-3, seed=0, device="cpu"
    )
    returns = []

    def record(variables, _):
        returns.extend(info["episode"]["r"] for info in variables["infos"] if "episode" in info)
        return True

    agent.learn(128, callback=record)
    before = np.mean(returns)
    agent.learn(2560)
    returns.clear()
    agent.learn(256, callback=record)
    assert np.mean(returns) > before + 0.1


def test_maskable_ppo_keeps_to_the_mask(keywords):
    from sb3_contrib import MaskablePPO

    forbidden = [0, 2, 4, 6, 8, 10, 12, 14]
    env = gym.make(ID, **{**keywords, "forbidden_tokens": forbidden, "reference": False})
    agent = MaskablePPO("MultiInputPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
    agent.learn(128)  # a forbidden action would raise InvalidAction
    actions = agent.rollout_buffer.actions
    assert not np.isin(actions, forbidden).any() and len(np.unique(actions)) > 3
