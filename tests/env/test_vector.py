"""TextGenVectorEnv against Gymnasium's SyncVectorEnv of single environments, key by key."""

import copy
import pickle

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmrl.errors import ResetNeeded

MODES = list(AutoresetMode)
EOS = 1


def trajectories(env, sync, mode, seed, steps, beta, masks, assert_equal, generator):
    """Drive both with the same actions and compare every answer."""
    count = env.num_envs
    for found, expected in zip(env.reset(seed=seed), sync.reset(seed=seed), strict=True):
        assert_equal(found, expected)
    done = np.zeros(count, dtype=bool)
    for _ in range(steps):
        if mode == AutoresetMode.DISABLED and done.any():
            extra = generator.random(count) < 0.2 if masks else np.zeros(count, dtype=bool)
            answers = env.reset(options={"reset_mask": done | extra}), sync.reset(options={"reset_mask": done | extra})
            for found, expected in zip(*answers, strict=True):
                assert_equal(found, expected)
        actions = np.where(generator.random(count) < 0.25, EOS, generator.integers(0, 15, count))
        if beta:
            logprobs = -generator.random(count)
            env.set_action_logprob(logprobs)
            for one, logprob in zip(sync.envs, logprobs, strict=True):
                one.unwrapped.set_action_logprob(float(logprob))
        answers = env.step(actions), sync.step(actions)
        for name, found, expected in zip(("obs", "reward", "terminated", "truncated", "info"), *answers, strict=True):
            assert_equal(found, expected, where=name)
        done = answers[0][2] | answers[0][3]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 0.1, "temperature": 0.7},
        {"on_length": "truncate", "reference": False},
        {"max_episode_steps": 3, "observe_action_mask": True},
        {"max_episode_steps": 6, "on_length": "truncate", "beta": 0.2},
        {"stop_strings": ["dog", "cat"], "reference": False},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_same_trajectories_as_sync(make_vector, make_sync, assert_equal, mode, changes):
    env, sync = make_vector(5, autoreset_mode=mode, **changes), make_sync(5, mode, **changes)
    beta = changes.get("beta", 0)
    trajectories(env, sync, mode, 7, 40, beta, True, assert_equal, np.random.default_rng(0))
    trajectories(env, sync, mode, None, 5, beta, True, assert_equal, np.random.default_rng(1))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(MODES),
    count=st.integers(1, 4),
    seed=st.one_of(st.integers(0, 2**31), st.just("list")),
    steps=st.integers(1, 20),
    limit=st.sampled_from([None, 1, 2, 5]),
    max_new_tokens=st.integers(1, 5),
    on_length=st.sampled_from(["terminate", "truncate"]),
    actions=st.integers(0, 2**31),
)
def test_same_trajectories_for_any_settings(
    make_vector, make_sync, assert_equal, mode, count, seed, steps, limit, max_new_tokens, on_length, actions
):
    changes = {"max_new_tokens": max_new_tokens, "on_length": on_length, "reference": False}
    env = make_vector(count, autoreset_mode=mode, max_episode_steps=limit, **changes)
    sync = make_sync(count, mode, max_episode_steps=limit, **changes)
    seeds = list(range(5, 5 + count)) if seed == "list" else seed
    trajectories(env, sync, mode, seeds, steps, 0, True, assert_equal, np.random.default_rng(actions))


def test_spaces_are_those_of_sync(make_vector, make_sync):
    env, sync = (
        make_vector(3, observe_action_mask=True),
        make_sync(3, AutoresetMode.NEXT_STEP, observe_action_mask=True),
    )
    assert env.observation_space == sync.observation_space and env.action_space == sync.action_space
    assert env.single_observation_space == sync.single_observation_space
    assert env.reset(seed=0)[0] in env.observation_space


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled", "NEXT_STEP", AutoresetMode.SAME_STEP])
def test_the_mode_is_shown(make_vector, mode):
    env = make_vector(2, autoreset_mode=mode)
    assert isinstance(env.autoreset_mode, AutoresetMode) and env.metadata["autoreset_mode"] is env.autoreset_mode
    assert "autoreset_mode" not in type(env).metadata


def test_the_resetting_step_ignores_its_action(make_vector):
    env = make_vector(2, beta=0.1)
    env.reset(seed=0)
    env.set_action_logprob([-1.0, -1.0])
    env.step([EOS, 5])
    env.set_action_logprob([np.nan, -1.0])
    _, rewards, terminated, truncated, infos = env.step([10**9, 4])
    assert rewards[0] == 0 and rewards[1] != 0 and not terminated.any() and not truncated.any()
    assert infos["_prompt_index"].tolist() == [True, False] and infos["_ref_logprob"].tolist() == [False, True]


def test_the_callers_mask_stays(make_vector):
    env = make_vector(2, autoreset_mode="Disabled")
    env.reset(seed=0)
    options = {"reset_mask": np.array([True, False])}
    env.reset(options=options)
    assert options.keys() == {"reset_mask"} and options["reset_mask"].tolist() == [True, False]


def test_disabled_wants_a_reset(make_vector):
    env = make_vector(2, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match=r"\[0, 1\]"):
        env.step([5, 5])
    env.reset(seed=0)
    env.step([EOS, 5])
    with pytest.raises(ResetNeeded, match=r"\[0\]"):
        env.step([5, 5])
    env.reset(options={"reset_mask": np.array([True, False])})
    env.step([5, 5])


def test_a_first_reset_is_of_all_rows(make_vector):
    with pytest.raises(ResetNeeded, match=r"\[1\]"):
        make_vector(2).reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.parametrize("seed", [3, np.int64(3), [3, 4, 5], (3, None, 5)])
def test_seeds(make_vector, make, seed):
    env = make_vector(3)
    index = env.reset(seed=seed)[1]["prompt_index"]
    expected = [make().reset(seed=3 + row)[1]["prompt_index"] for row in range(3)]
    assert index[[0, 2]].tolist() == [expected[0], expected[2]]
    assert len(env.np_random) == 3 and env.np_random_seed[0] == 3 and env.np_random_seed[2] == 5
    assert isinstance(env.np_random, tuple) and isinstance(env.np_random_seed, tuple)


def test_unseeded_generators_differ(make_vector):
    env = make_vector(3)
    assert len(set(env.np_random_seed)) == 3
    env.np_random = [np.random.default_rng(row) for row in range(3)]
    assert env.np_random_seed == (-1, -1, -1)


def test_a_prompt_for_every_row(make_vector):
    env = make_vector(3)
    assert env.reset(options={"prompt_index": [2, 0, 2]})[1]["prompt_index"].tolist() == [2, 0, 2]
    assert env.reset(options={"prompt_index": 1})[1]["prompt_index"].tolist() == [1, 1, 1]
    assert env.reset(options={"prompt": "a cat"})[1]["prompt_index"].tolist() == [-1, -1, -1]


def test_the_reward_is_called_once_per_step(make_vector):
    calls = []

    def reward(prompts, responses):
        calls.append(len(responses))
        return [1.0] * len(responses)

    env = make_vector(4, reward=reward, reward_settings=None, reference=False)
    env.reset(seed=0)
    env.step([EOS, 5, EOS, 5])
    env.step([5, EOS, 5, 5])
    assert calls == [2, 1]


def test_a_pickle_in_mid_episode_goes_on_identically(make_vector, assert_equal):
    env = make_vector(3, beta=0.1)
    env.reset(seed=1)
    for actions in ([5, 4, EOS], [5, 5, 5]):
        env.set_action_logprob([-1.0, -2.0, -0.5])
        env.step(actions)
    env.set_action_logprob([-1.0, -2.0, -0.5])
    twins = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    expected = [*env.step([6, EOS, 7]), *env.reset()]
    for twin in twins:
        for one, other in zip([*twin.step([6, EOS, 7]), *twin.reset()], expected, strict=True):
            assert_equal(one, other, tolerance=0)


def test_render_and_close(make_vector, capsys):
    env = make_vector(2, render_mode="ansi", prompts=["the cat"], reference=False)
    assert env.render() is None
    env.reset()
    env.step(env.task.card.codec.encode("ran the"))
    assert env.render() == ("the cat ran", "the cat the")
    env.close()
    env.close()
    human = make_vector(1, render_mode="human", prompts=["the cat"], reference=False)
    human.reset()
    human.step([EOS])
    assert capsys.readouterr().out == "the cat\n" and make_vector(2, render_mode="rgb_array").render() is None
