"""Bad input: a documented type, a message that helps, and an environment that goes on as if nothing had happened."""

import numpy as np
import pytest
import torch

from lmrl.envs import TextGenEnv
from lmrl.errors import (
    InvalidAction,
    LmrlError,
    ModelError,
    PromptError,
    ResetNeeded,
    RewardError,
    SettingsError,
)

EOS = 1


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "empty"),
        (None, "prompts is missing"),
        ("the cat", "one str"),
        (["the", ""], "prompt 1 has no tokens"),
        ([[]], "no tokens"),
        ([["the"]], "'the'"),
        ([[True]], "True"),
        ([[3, 15]], "15 is out of range; expected 0 to 14"),
        ([[-1]], "-1"),
        ([[3.0]], "3.0"),
        ([7], "prompt 0 is a int"),
        (7, "one int"),
        ([[3] * 48], "no room in the context of 48"),
        (["the " * 60], "60 tokens"),
        ([{"promt": "the"}], "Did you mean 'promt'"),
        ([{"prompt": "the", "answer": 1}, {"prompt": "a"}], "same columns"),
        ([{"prompt": "the", "choices": ["a", "cat"], "answer": "B"}], r"Set columns.choices = \"choices\""),
        ([{"prompt": "the", "answer": "B", "A": "a", "B": "cat"}], "mean nothing without 'A' and 'B'"),
        ([{"prompt": "the", "image": {"bytes": b"1"}}], "prompt 0 has the column 'image'"),
    ],
)
def test_prompts(make, make_vector, prompts, message):
    for maker in (make, make_vector):
        with pytest.raises(PromptError, match=message):
            maker(prompts=prompts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"beta": "much"}, "beta is 'much'"),
        ({"beta": 0.1, "reference": False}, "needs the frozen reference"),
        ({"temperature": 0}, "temperature is 0; expected a finite number above 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"observation_length": 9}, "observation_length is 9, but the longest prompt and its response may have 10"),
        ({"observation_length": 0}, "observation_length is 0"),
        ({"on_length": "stop"}, "'terminate' or 'truncate'"),
        ({"stop_strings": "stop"}, "expected a list of strings"),
        ({"stop_strings": [""]}, "not empty"),
        ({"forbidden_tokens": [15]}, "0 to 14"),
        ({"forbidden_tokens": list(range(15))}, "whole vocabulary"),
        ({"reward": None, "reward_settings": None}, "reward is missing"),
    ],
)
def test_settings(make, make_vector, changes, message):
    for maker in (make, make_vector):
        with pytest.raises(SettingsError, match=message):
            maker(**changes)


def test_unknown_keywords_are_pythons_own_type_error(make, make_vector):
    for maker in (make, make_vector):
        with pytest.raises(TypeError, match="unexpected keyword argument 'bata'"):
            maker(bata=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 7}, "a int"),
        ({"reference": 7}, "reference is a int"),
        ({"model": "/there/is/none"}, "no model folder"),
    ],
)
def test_models(make, changes, message):
    with pytest.raises(ModelError, match=message):
        make(**changes)


def test_a_reference_of_another_vocabulary(make, tmp_path):
    from lmrl.testing import write_tiny_model

    with pytest.raises(SettingsError, match="vocabulary of 5"):
        make(reference=str(write_tiny_model(tmp_path / "words", words=("the", "a"))))
    with pytest.raises(SettingsError, match="context of 16"):
        make(reference=str(write_tiny_model(tmp_path / "context", context=16)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoreset_mode": "NextSep"}, "did you mean 'NextStep'"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"count": 0}, "num_envs is 0"),
    ],
)
def test_vector_settings(make_vector, changes, message):
    with pytest.raises(SettingsError, match=message):
        make_vector(**changes)


ACTIONS = [
    15,
    -1,
    10**30,
    2.0,
    np.float32(2),
    True,
    np.bool_(True),
    "5",
    None,
    [5],
    np.array([5]),
    np.array(5.0),
    [5, 5],
]
ACTIONS += [torch.tensor([5]), torch.tensor(5.0), torch.tensor(True), 7]


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_actions(make, play, assert_equal, action):
    env, twin = make(forbidden_tokens=[7]), make(forbidden_tokens=[7])
    play(env, [5, 4], seed=0)
    play(twin, [5, 4], seed=0)
    with pytest.raises(InvalidAction) as error:
        env.step(action)
    assert isinstance(error.value, ValueError) and len(error.value.args) == 1
    for one, other in zip(env.step(6), twin.step(6), strict=True):
        assert_equal(one, other, tolerance=0)


@pytest.mark.parametrize("action", [5, np.int32(5), np.array(5), np.uint8(5), torch.tensor(5)], ids=repr)
def test_integers_of_any_kind_are_actions(make, action):
    env = make(reference=False)
    env.reset(options={"prompt_index": 2})
    assert env.step(action)[0]["input_ids"][1] == 5


VECTOR_ACTIONS = [
    [5, 15], [5, -1], [5, 7], [5.0, 5.0], [True, False], ["5", "5"], [5], [5, 5, 5], 5, [[5, 5]], [5, [5]], [5, None],
    [5, 10**30],
]  # fmt: skip


@pytest.mark.parametrize("actions", VECTOR_ACTIONS, ids=repr)
def test_vector_actions(make_vector, assert_equal, actions):
    env, twin = make_vector(2, forbidden_tokens=[7]), make_vector(2, forbidden_tokens=[7])
    for one in (env, twin):
        one.reset(seed=0)
        one.step([5, 4])
    with pytest.raises(InvalidAction):
        env.step(actions)
    for one, other in zip(env.step(torch.tensor([6, EOS])), twin.step([6, EOS]), strict=True):
        assert_equal(one, other, tolerance=0)


def test_step_wants_a_reset(make, make_vector):
    env = make()
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(5)
    env.reset()
    env.step(EOS)
    with pytest.raises(ResetNeeded):
        env.step(5)
    env.reset()
    env.step(5)
    with pytest.raises(ResetNeeded):
        make_vector(2).step([5, 5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_index": 4}, "from 0 to 3"),
        ({"prompt_index": -1}, "from 0 to 3"),
        ({"prompt_index": True}, "True"),
        ({"prompt_index": "0"}, "'0'"),
        ({"prompt": ""}, "no tokens"),
        ({"prompt": "the " * 30}, "observation_length is 10"),
        ({"prompt": [99]}, "out of range"),
        ({"prompt": 3}, "a int"),
        ({"prompt": "the", "prompt_index": 0}, "one of them"),
        ({"promt": "the"}, "did you mean 'prompt'"),
        ([1], "expected a mapping"),
    ],
)
def test_reset_options(make, make_vector, assert_equal, options, message):
    env, twin = make(reference=False), make(reference=False)
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(PromptError, match=message):
        env.reset(seed=1, options=options)
    for one, other in zip([*env.step(5), *env.reset()], [*twin.step(5), *twin.reset()], strict=True):
        assert_equal(one, other)
    with pytest.raises(PromptError, match=message):
        make_vector(2).reset(options=options)


def test_a_prompt_without_the_columns_of_the_others(make):
    env = make(prompts=[{"prompt": "the", "answer": "cat"}])
    with pytest.raises(PromptError, match="answer"):
        env.reset(options={"prompt": "a"})


@pytest.mark.parametrize(
    "options",
    [
        {"reset_mask": [True, True]},
        {"reset_mask": np.array([1, 0])},
        {"reset_mask": np.array([True])},
        {"reset_mask": np.array([False, False])},
    ],
)
def test_reset_masks(make_vector, options):
    env = make_vector(2)
    env.reset()
    with pytest.raises(SettingsError, match="reset_mask"):
        env.reset(options=options)


@pytest.mark.parametrize("seed", [[1], "12", 1.5, True])
def test_seeds(make_vector, seed):
    with pytest.raises(SettingsError, match="seed"):
        make_vector(2).reset(seed=seed)


def test_prompt_indices_for_the_wrong_number_of_rows(make_vector):
    with pytest.raises(PromptError, match="3 entries; expected 2"):
        make_vector(2).reset(options={"prompt_index": [0, 1, 2]})


class Moody:
    """A reward that misbehaves as it is told."""

    mood = "good"

    def __call__(self, prompts, responses):
        moods = {
            "good": lambda: [1.0] * len(responses),
            "nan": lambda: [float("nan")] * len(responses),
            "inf": lambda: [float("inf")] * len(responses),
            "many": lambda: [1.0] * (len(responses) + 1),
            "none": lambda: None,
            "raise": lambda: 1 / 0,
        }
        return moods[self.mood]()


@pytest.mark.parametrize("mood", ["nan", "inf", "many", "none", "raise"])
def test_rewards(make, make_vector, assert_equal, mood):
    """The episode is unchanged, the pushed log-probability included: the step may be tried again."""
    reward, good = Moody(), Moody()
    changes = {"reward_settings": None, "beta": 0.1}
    pairs = (
        (make(reward=reward, **changes), make(reward=good, **changes), 5, EOS, -1.0),
        (
            make_vector(3, reward=reward, **changes),
            make_vector(3, reward=good, **changes),
            [5] * 3,
            [EOS, 5, EOS],
            [-1.0] * 3,
        ),
    )
    for env, twin, going, ending, logprob in pairs:
        for one in (env, twin):
            one.reset(seed=0)
            one.set_action_logprob(logprob)
            one.step(going)
            one.set_action_logprob(logprob)
        reward.mood = mood
        with pytest.raises(RewardError, match=r"[^.]\. The episode is unchanged"):
            env.step(ending)
        reward.mood = "good"
        for one, other in zip([*env.step(ending), *env.reset()], [*twin.step(ending), *twin.reset()], strict=True):
            assert_equal(one, other)


def test_everything_is_an_lmrl_error(make):
    with pytest.raises(LmrlError):
        make(prompts=[])
    assert TextGenEnv.metadata["render_modes"] == ["ansi", "human"]
