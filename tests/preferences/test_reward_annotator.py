"""The reward annotator: scores become ranks, whatever the order of completions and comparisons."""

import numpy as np
import pytest

from lmrl.annotators import AnnotatorSettings, Comparison, build_annotator
from lmrl.annotators.reward import RewardAnnotator
from lmrl.errors import RewardError, SettingsError
from lmrl.rewards import resolve
from lmrl.rewards.binding import TURNS

HAPPY, SAD, NONE = "The ball was red. Tom was happy.", "The ball was lost. Tom was sad.", "The ball"


def comparison(*completions, prompt="Once", **columns):
    return Comparison(prompt, prompt if isinstance(prompt, str) else "chat", completions, columns)


def test_a_named_reward_ranks_with_ties():
    judged = build_annotator(AnnotatorSettings(reward="happy_end")).judge([comparison(SAD, HAPPY, NONE, HAPPY)])
    assert judged[0].ranks == (2, 0, 1, 0) and judged[0].scores == (-1, 1, 0, 1)


def test_settings_reach_the_reward_and_tolerance_makes_ties():
    settings = AnnotatorSettings(settings={"happy": 5.0, "none": 4.5}, tolerance=0.5)
    assert build_annotator(settings).judge([comparison(SAD, HAPPY, NONE)])[0].ranks == (1, 0, 0)


def test_a_function_of_a_module_gets_the_columns(tmp_path, monkeypatch):
    (tmp_path / "my_preferences.py").write_text(
        "def wanted(prompts, responses, answer):\n    return [float(a in r) for a, r in zip(answer, responses)]\n"
    )
    monkeypatch.chdir(tmp_path)
    annotator = build_annotator(AnnotatorSettings(reward="my_preferences:wanted"))
    judged = annotator.judge([comparison("a", "b", answer="b"), comparison("a", "b", "ab", answer="a")])
    assert [one.ranks for one in judged] == [(1, 0), (0, 1, 0)]
    with pytest.raises(RewardError, match="answer"):
        annotator.judge([comparison("a", "b")])


def test_conversations_are_handed_over_as_messages():
    seen = []

    def reads(prompts, responses, prompt_messages=None):
        seen.extend(prompt_messages)
        return np.arange(len(responses))

    messages = ({"role": "user", "content": "Hi"},)
    annotator = RewardAnnotator(resolve(reads))
    judged = annotator.judge([comparison("x", "y", prompt=messages), comparison("x", "y")])
    assert seen == [[messages[0]], [messages[0]], None, None]
    assert [one.ranks for one in judged] == [(1, 0), (1, 0)]


def test_permuting_completions_permutes_ranks():
    annotator = RewardAnnotator(resolve("length", {"mode": "linear", "unit": "characters"}))
    texts = ["a", "bbb", "cc", "ddd", "eeeee"]
    (plain,) = annotator.judge([comparison(*texts)])
    order = [3, 0, 4, 1, 2]
    (moved,) = annotator.judge([comparison(*(texts[i] for i in order))])
    assert moved.ranks == tuple(plain.ranks[i] for i in order)
    assert moved.scores == tuple(plain.scores[i] for i in order)


def test_wrong_settings_are_refused():
    with pytest.raises(SettingsError, match="did you mean 'happy_end'"):
        build_annotator(AnnotatorSettings(reward="happy_ending"))
    with pytest.raises(SettingsError, match="tolerance"):
        AnnotatorSettings(tolerance=-1)


def test_nothing_to_judge_is_no_error():
    assert build_annotator(AnnotatorSettings()).judge([]) == []


def test_rewards_of_tokens_are_summed_where_the_tokens_are_known():
    annotator = RewardAnnotator(resolve(lambda prompts, responses: [[0.5] * len(text) for text in responses]))
    [judged] = annotator.judge([Comparison("Once", "Once", ("ab", "abc"), {}, {TURNS: [[2], [3]]})])
    assert judged.ranks == (1, 0) and judged.scores == (1.0, 1.5)
    with pytest.raises(RewardError, match="expected one number, because its sampled tokens are not known here"):
        annotator.judge([comparison("ab", "abc")])
