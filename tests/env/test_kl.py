"""KL shaping in the environment: the sum of rewards, and who says log pi."""

import numpy as np
import pytest

from lmrl.envs import KLShaping, TextGenVectorEnv
from lmrl.errors import InvalidAction, MissingActionLogprob, SettingsError

EOS = 1
BETA = 0.3


def policy(observation, action):
    """A made-up log-probability that depends on state and action; batched too."""
    return -0.1 * (observation["attention_mask"].sum(-1) % 3) - 0.01 * np.asarray(action)


def test_rewards_sum_to_the_score_minus_the_log_ratios(make):
    env = make(beta=BETA)
    generator = np.random.default_rng(0)
    for seed in range(20):
        env.reset(seed=seed)
        rewards, ratios, ended = [], [], False
        while not ended:
            logprob = -float(generator.random())
            env.set_action_logprob(logprob)
            action = EOS if generator.random() < 0.2 else int(generator.integers(15))
            _, reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            ratios.append(logprob - info["ref_logprob"])
            ended = terminated or truncated
            if not ended:
                assert reward == pytest.approx(-BETA * ratios[-1])
        assert sum(rewards) == pytest.approx(info["score"] - BETA * sum(ratios))
        assert len(rewards) == info["new_tokens"]


def test_without_beta_the_reward_is_the_score(make):
    env = make()
    env.reset(seed=0)
    env.set_action_logprob(-1.0)
    assert env.step(5)[1] == 0.0
    _, reward, *_, info = env.step(EOS)
    assert reward == info["score"]


def test_a_truncated_episode_is_shaped_but_not_scored(make):
    env = make(beta=BETA, max_new_tokens=1, on_length="truncate")
    env.reset(seed=0)
    env.set_action_logprob(-1.0)
    _, reward, terminated, truncated, info = env.step(5)
    assert truncated and not terminated and reward == pytest.approx(-BETA * (-1.0 - info["ref_logprob"]))


def test_the_wrapper_equals_pushing_by_hand(make, play, assert_equal):
    actions = [5, 4, 6, EOS]
    wrapped, bare = KLShaping(make(beta=BETA), policy), make(beta=BETA)
    found = play(wrapped, actions, seed=2)
    observation, info = bare.reset(seed=2)
    expected = [(observation, info)]
    for action in actions:
        bare.set_action_logprob(policy(observation, action))
        expected.append(bare.step(action))
        observation = expected[-1][0]
    for one, other in zip(found, expected, strict=True):
        for part, twin in zip(one, other, strict=True):
            assert_equal(part, twin)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_vector_wrapper_equals_pushing_by_hand(make_vector, assert_equal, mode):
    wrapped = KLShaping(make_vector(3, beta=BETA, autoreset_mode=mode), policy)
    bare = make_vector(3, beta=BETA, autoreset_mode=mode)
    assert wrapped.unwrapped.num_envs == 3
    wrapped.reset(seed=2)
    observation, _ = bare.reset(seed=2)
    generator = np.random.default_rng(0)
    for _ in range(25):
        actions = np.where(generator.random(3) < 0.3, EOS, generator.integers(0, 15, 3))
        bare.set_action_logprob(policy(observation, actions))
        expected = bare.step(actions)
        for part, twin in zip(wrapped.step(actions), expected, strict=True):
            assert_equal(part, twin)
        observation = expected[0]


def test_somebody_must_say_log_pi(make, make_vector):
    env = make(beta=BETA)
    env.reset(seed=0)
    with pytest.raises(MissingActionLogprob, match="set_action_logprob"):
        env.step(5)
    env.set_action_logprob(-1.0)
    env.step(5)
    with pytest.raises(MissingActionLogprob):  # used once
        env.step(5)
    env.set_action_logprob(-1.0)
    env.reset()
    with pytest.raises(MissingActionLogprob):  # cleared by reset
        env.step(5)
    vector = make_vector(2, beta=BETA)
    vector.reset(seed=0)
    with pytest.raises(MissingActionLogprob):
        vector.step([5, 5])
    vector.set_action_logprob([-1.0, -1.0])
    vector.reset()
    with pytest.raises(MissingActionLogprob):
        vector.step([5, 5])


def test_never_both(make, make_vector):
    for env, action, logprob in ((make(beta=BETA), 5, -1.0), (make_vector(2, beta=BETA), [5, 5], [-1.0, -1.0])):
        wrapped = KLShaping(env, policy)
        wrapped.reset(seed=0)
        env.set_action_logprob(logprob)
        with pytest.raises(SettingsError, match="one or the other"):
            wrapped.step(action)
        env.set_action_logprob(None)
        wrapped.step(action)
        with pytest.raises(SettingsError, match="already"):
            KLShaping(wrapped, policy)


def test_a_failed_step_takes_the_wrappers_push_back(make):
    env = make(beta=BETA)
    wrapped = KLShaping(env, policy)
    wrapped.reset(seed=0)
    with pytest.raises(InvalidAction):
        wrapped.step(99)
    assert not env.has_action_logprob
    wrapped.step(5)


@pytest.mark.parametrize("logprob", [float("nan"), float("inf"), float("-inf"), 0.5, "likely", None])
def test_what_cannot_be_a_logprob(make, make_vector, logprob):
    env, vector = make(beta=BETA), make_vector(2, beta=BETA)
    env.reset()
    vector.reset()
    if logprob is None:
        with pytest.raises(InvalidAction, match="shape"):
            vector.set_action_logprob([-1.0])
        with pytest.raises(InvalidAction):
            env.set_action_logprob([-1.0, -1.0])
        return
    with pytest.raises(InvalidAction, match="log-probability"):
        env.set_action_logprob(logprob)
    with pytest.raises(InvalidAction, match="log-probability"):
        vector.set_action_logprob([-1.0, logprob])
    env.set_action_logprob(1e-7)  # float32 log-softmax rounds


def test_what_cannot_be_wrapped(make, make_sync):
    import gymnasium as gym
    from gymnasium.vector import AutoresetMode

    with pytest.raises(SettingsError, match="CartPole"):
        KLShaping(gym.make("CartPole-v1"), policy)
    with pytest.raises(SettingsError, match="wrap each environment"):
        KLShaping(make_sync(2, AutoresetMode.NEXT_STEP, beta=BETA), policy)
    with pytest.raises(SettingsError, match="callable"):
        KLShaping(make(beta=BETA), 3)
    assert isinstance(KLShaping(make(), policy), KLShaping) and TextGenVectorEnv
