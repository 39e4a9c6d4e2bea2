"""A tiny random model, environments made of it, and a driver that plays any of them."""

from __future__ import annotations

import functools

import gymnasium as gym
import numpy as np
import pytest

from lmrl.envs import TextGenEnv, TextGenVectorEnv
from lmrl.testing import write_tiny_model

PROMPTS = ["the cat", "a dog ran", "the", "a home far a"]
REWARD = {"length": 0.5, "repetition": 1.0}
REWARD_SETTINGS = {"length": {"mode": "linear", "cost": -0.25}, "repetition": {"n": 1}}


@pytest.fixture(scope="session", params=["llama"])
def model_path(request, tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("env") / request.param, architecture=request.param))


@pytest.fixture(scope="session")
def keywords(model_path):
    """Keywords that have a JSON form, so that they cross processes and specs."""
    return {
        "model": model_path,
        "prompts": PROMPTS,
        "reward": REWARD,
        "reward_settings": REWARD_SETTINGS,
        "max_new_tokens": 6,
    }


@pytest.fixture
def make(keywords):
    return lambda **changes: TextGenEnv(**{**keywords, **changes})


@pytest.fixture
def make_vector(keywords):
    return lambda count=4, **changes: TextGenVectorEnv(count, **{**keywords, **changes})


@pytest.fixture
def make_sync(keywords):
    """Return Gymnasium's own vectorization of the single environment: the oracle."""

    def sync(count, mode, max_episode_steps=None, **changes):
        def one():
            env = TextGenEnv(**{**keywords, **changes})
            return env if max_episode_steps is None else gym.wrappers.TimeLimit(env, max_episode_steps)

        return gym.vector.SyncVectorEnv([one] * count, autoreset_mode=mode)

    return sync


def equal(found, expected, tolerance=1e-5, where=""):
    """Assert that two observations, infos or arrays are the same, types included; floats may differ by rounding."""
    assert type(found) is type(expected), (where, type(found), type(expected))
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), (where, found.keys() ^ expected.keys())
        for key in found:
            equal(found[key], expected[key], tolerance, f"{where}.{key}")
    elif isinstance(found, np.ndarray) and found.dtype == object:
        assert found.shape == expected.shape, where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            equal(one, other, tolerance, f"{where}[{index}]")
    elif isinstance(found, np.ndarray):
        assert found.dtype == expected.dtype and found.shape == expected.shape, (where, found.dtype, expected.dtype)
        if found.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=where)
        else:
            np.testing.assert_array_equal(found, expected, err_msg=where)
    else:
        assert found == expected, where


@pytest.fixture(scope="session")
def assert_equal():
    return equal


@pytest.fixture(scope="session")
def play():
    return functools.partial(_play)


def _play(env, actions, seed=None, options=None, logprobs=None):
    """Reset, take the actions, and return everything that came back."""
    answers = [env.reset(seed=seed, options=options)]
    for step, action in enumerate(actions):
        if logprobs is not None:
            env.unwrapped.set_action_logprob(logprobs[step])
        answers.append(env.step(action))
        if isinstance(answers[-1][2], bool) and (answers[-1][2] or answers[-1][3]):
            break
    return answers
