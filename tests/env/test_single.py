"""TextGenEnv: observations, flags, infos, prompts, rendering and copies."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from gymnasium.utils import seeding

from lmrl.errors import ResetNeeded

EOS = 1


def word_count(prompts, responses):
    return {"score": [float(len(response.split())) for response in responses], "words": [7] * len(responses)}


def test_reset_shows_the_prompt(make):
    env = make()
    observation, info = env.reset(options={"prompt_index": 1})
    assert observation["prompt_length"].tolist() == [3] and observation["prompt_length"].dtype == np.int64
    assert (
        observation["attention_mask"].tolist() == [1, 1, 1] + [0] * 7 and observation["attention_mask"].dtype == np.int8
    )
    assert observation["input_ids"].dtype == np.int64 and observation["input_ids"][3:].tolist() == [0] * 7
    assert info.keys() == {"prompt_index", "action_mask"} and info["prompt_index"] == 1
    assert observation in env.observation_space


def test_an_action_is_appended(make):
    env = make()
    before, _ = env.reset(options={"prompt_index": 0})
    after, reward, terminated, truncated, info = env.step(np.int64(5))
    assert after["input_ids"].tolist() == before["input_ids"].tolist()[:2] + [5] + [0] * 7
    assert after["attention_mask"].sum() == 3 and before["attention_mask"].sum() == 2
    assert (reward, terminated, truncated) == (0.0, False, False) and type(terminated) is bool and type(reward) is float
    assert info.keys() == {"action_mask", "ref_logprob"}


@pytest.mark.parametrize("on_length", ["terminate", "truncate"])
@pytest.mark.parametrize(
    ("actions", "changes", "reason"),
    [
        ([5, EOS], {}, "eos"),
        ([EOS], {}, "eos"),
        ([5, 5, EOS], {"max_new_tokens": 3}, "eos"),
        ([5, 4, 5], {"max_new_tokens": 3}, "length"),
        ([5] * 46, {"max_new_tokens": 100}, "context"),
        ([5] * 45 + [EOS], {"max_new_tokens": 100}, "eos"),
        ([5, 6], {"stop_strings": ["far", "cat dog"]}, "stop"),
        ([5, 5, 6], {"stop_strings": ["dog"], "max_new_tokens": 3}, "stop"),
        ([4, 5, EOS], {"forbidden_tokens": [6], "stop_strings": ["<eos>"]}, "eos"),
    ],
)
def test_flags(make, actions, changes, reason, on_length):
    env = make(reward=word_count, reward_settings=None, on_length=on_length, reference=False, **changes)
    env.reset(options={"prompt_index": 0})
    for action in actions[:-1]:
        _, reward, terminated, truncated, info = env.step(action)
        assert not terminated and not truncated and reward == 0.0 and "text" not in info
    _, reward, terminated, truncated, info = env.step(actions[-1])
    cut_off = reason in ("length", "context") and on_length == "truncate"
    assert (terminated, truncated) == (not cut_off, cut_off)
    assert info["finish_reason"] == reason and info["new_tokens"] == len(actions)
    assert info["prompt"] == "the cat" and info["prompt_index"] == 0 and "dog" not in info["text"]
    if cut_off:
        assert reward == 0.0 and "score" not in info and "reward_words" not in info
    else:
        assert reward == info["score"] == len(info["text"].split()) and info["reward_words"] == 7.0
    with pytest.raises(ResetNeeded):
        env.step(5)


def test_a_stop_string_is_not_part_of_the_text(make):
    env = make(stop_strings=["dog"], prompts=["the cat"])
    env.reset()
    ids = env.task.card.codec.encode("ran dog")
    env.step(ids[0])
    info = env.step(ids[1])[4]
    assert info["finish_reason"] == "stop" and info["text"] == " ran "


def test_infos_are_flat_and_keep_their_types(make):
    env = make()
    types = {}
    for seed in range(12):
        env.action_space.seed(seed)
        info = env.reset(seed=seed)[1]
        ended = False
        while True:
            for key, value in info.items():
                assert isinstance(value, int | float | str | np.ndarray) and not isinstance(value, bool)
                assert types.setdefault(key, type(value)) is type(value)
                assert key not in ("episode", "final_obs", "final_info") and not key.startswith("_")
                assert not isinstance(value, float) or np.isfinite(value)
            if ended:
                break
            *_, terminated, truncated, info = env.step(env.action_space.sample())
            ended = terminated or truncated
    assert types["reward_length"] is float and types["text"] is str and types["new_tokens"] is int


def test_every_answer_is_new(make):
    env = make(observe_action_mask=True)
    answers = [env.reset(seed=0)] + [env.step(5)[::4] for _ in range(3)]
    for first, second in itertools.pairwise(answers):
        for one, other in ((first[0], second[0]), (first[1], second[1])):
            for key in one.keys() & other.keys():
                if isinstance(one[key], np.ndarray):
                    assert not np.shares_memory(one[key], other[key])
    answers[-1][0]["input_ids"][:] = 9
    assert env.step(4)[0]["input_ids"].tolist() != [9] * 10


def test_prompts_are_drawn_from_the_seeded_generator(make):
    env = make()
    drawn = [env.reset(seed=3)[1]["prompt_index"]] + [env.reset()[1]["prompt_index"] for _ in range(40)]
    generator, _ = seeding.np_random(3)
    assert drawn == [int(generator.integers(4)) for _ in range(41)] and set(drawn) == {0, 1, 2, 3}
    again = [env.reset(seed=3)[1]["prompt_index"]] + [env.reset()[1]["prompt_index"] for _ in range(40)]
    assert again == drawn


@pytest.mark.parametrize("prompt", ["a cat ran", [4, 5, 6], np.array([4, 5, 6]), {"prompt": "a cat ran"}])
def test_a_prompt_may_be_given_at_reset(make, prompt):
    env = make(reference=False)
    observation, info = env.reset(options={"prompt": prompt})
    assert info["prompt_index"] == -1 and observation["prompt_length"].tolist() == [3]


def test_columns_reach_the_reward_by_name(make):
    def matches(prompts, responses, answer):
        return [float(one.split() == other.split()) for one, other in zip(responses, answer, strict=True)]

    rows = [{"prompt": "the", "answer": "cat", "unused": 3}, {"prompt": [4], "answer": "dog", "unused": 4}]
    env = make(prompts=rows, reward=matches, reward_settings=None, reference=False)
    for index, word in enumerate(("cat", "dog")):
        env.reset(options={"prompt_index": index})
        env.step(env.task.card.codec.encode(word)[0])
        assert env.step(EOS)[1] == 1.0
    env.reset(options={"prompt": {"prompt": "ran", "answer": "", "unused": 0}})
    assert env.step(EOS)[1] == 1.0


def test_the_action_mask(make):
    env = make(forbidden_tokens=[0, 7], observe_action_mask=True)
    observation, info = env.reset(seed=0)
    assert env.action_masks().dtype == np.bool_ and np.flatnonzero(~env.action_masks()).tolist() == [0, 7]
    assert info["action_mask"].dtype == np.int8 and (info["action_mask"] == env.action_masks()).all()
    assert (observation["action_mask"] == info["action_mask"]).all() and observation in env.observation_space
    assert (env.step(5)[4]["action_mask"] == env.action_masks()).all()


@pytest.mark.parametrize("mode", [None, "ansi", "human", "rgb_array"])
def test_render(make, mode, capsys):
    env = make(render_mode=mode, prompts=["the cat"], reference=False)
    assert env.render() is None
    env.reset()
    env.step(env.task.card.codec.encode("ran")[0])
    assert env.render() == ("the cat ran" if mode == "ansi" else None)
    assert capsys.readouterr().out == ("the cat ran\n" if mode == "human" else "")
    env.step(EOS)
    assert capsys.readouterr().out == ("the cat ran\n" if mode == "human" else "")


def test_a_pickle_in_mid_episode_goes_on_identically(make, play, assert_equal):
    env = make(beta=0.1)
    play(env, [5, 4], seed=1, logprobs=[-1.0, -2.0])
    env.set_action_logprob(-0.5)
    twins = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    expected = [env.step(6), *play(env, [7, EOS], logprobs=[-0.1, -0.2])]
    for twin in twins:
        found = [twin.step(6), *play(twin, [7, EOS], logprobs=[-0.1, -0.2])]
        for one, other in zip(found, expected, strict=True):
            for part, twin_part in zip(one, other, strict=True):
                assert_equal(part, twin_part, tolerance=0)


def test_copies_are_independent(make):
    env = make()
    env.reset(seed=0)
    twin = copy.deepcopy(env)
    twin.step(EOS)
    env.step(5)
    with pytest.raises(ResetNeeded):
        twin.step(5)


def test_close_twice(make):
    env = make()
    env.reset()
    env.close()
    env.close()
