"""Bad rows are left out and counted with the number of the first; where nothing is left, that is an error."""

from __future__ import annotations

import math

import pytest

from lmrl.data import RowSettings, load_examples, load_prompts, load_rankings
from lmrl.errors import DataError, SettingsError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
N_WAY = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}
RANKED = {"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}
COMPLETION = {"prompt": "p", "completion": "c"}
CHAT = {"messages": [USER, ASSISTANT]}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "\n\nHuman: q\n\nAssistant: r"}

EXAMPLES = [
    (COMPLETION, {"prompt": "p", "completion": " "}, "an empty completion"),
    (COMPLETION, {"prompt": "p", "completion": None}, "no 'completion'"),
    (COMPLETION, {"prompt": "p"}, "no 'completion'"),
    (COMPLETION, {"prompt": "", "completion": "c"}, "an empty prompt"),
    (COMPLETION, {"prompt": "p", "completion": 3}, "completion: not messages of role and content"),
    (COMPLETION, {"messages": [USER, ASSISTANT]}, "no 'prompt'"),
    (COMPLETION, {"prompt": [USER, ASSISTANT], "completion": "c"}, "a prompt that ends with the assistant"),
    (CHAT, {"messages": []}, "no messages"),
    (CHAT, {"messages": None}, "no 'messages'"),
    (CHAT, {"messages": [USER]}, "no assistant message"),
    (CHAT, {"messages": [ASSISTANT]}, "an assistant message before any other"),
    (CHAT, {"messages": [USER, {"role": "assistant", "content": " "}]}, "an empty assistant message"),
    (CHAT, {"messages": [USER, {"role": "narrator", "content": "x"}]}, "an unknown role"),
    (CHAT, {"messages": [USER, {"role": "assistant", "content": {"a": 1}}]}, "a message that is not text"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]}, "a message that is not text"),
    (CHAT, {"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": 1}]}]}, "a call of a tool without a name"),
    (CHAT, {"messages": [{"role": "system", "content": ""}]}, "messages: nothing said"),
    (CHAT, {"messages": "q"}, "messages: not messages of role and content"),
    ({"instruction": "i", "output": "o"}, {"instruction": "i", "output": ""}, "an empty output"),
    ({"instruction": "i", "output": "o"}, {"instruction": "i", "input": 3, "output": "o"}, "input: not text"),
    (PAIR, {"prompt": "p", "chosen": "", "rejected": "r"}, "an empty answer"),
    (
        {"prompt": "p", "completions": ["a"], "labels": [1]},
        {"prompt": "p", "completions": ["a", "b"], "labels": [1, 0]},
        "a solution with a step that is labelled as wrong",
    ),
    (
        {"prompt": "p", "completions": ["a"], "labels": [1]},
        {"prompt": "p", "completions": ["a", "b"], "labels": [1]},
        "not as many labels as steps",
    ),
    ({**COMPLETION, "label": 1}, {**COMPLETION, "label": "maybe"}, "a label that is neither true nor false"),
]

RANKINGS = [
    (PAIR, {"prompt": "p", "chosen": "c", "rejected": "c"}, "chosen equal to rejected"),
    (PAIR, {"prompt": "p", "chosen": "c", "rejected": " c\n"}, "chosen equal to rejected"),
    (PAIR, {"prompt": "p", "chosen": "c", "rejected": None}, "no 'rejected'"),
    (PAIR, {"prompt": "p", "chosen": "", "rejected": "r"}, "a best answer that is empty"),
    (PAIR, {"chosen": "c", "rejected": "r"}, "no 'prompt'"),
    (N_WAY, {**N_WAY, "scores": [1, 1]}, "answers that all tie"),
    (N_WAY, {**N_WAY, "scores": [1, math.nan]}, "scores: not finite numbers"),
    (N_WAY, {**N_WAY, "scores": [1, None]}, "scores: not finite numbers"),
    (N_WAY, {**N_WAY, "scores": [1, 2, 3]}, "not as many scores as completions"),
    (N_WAY, {**N_WAY, "completions": ["a"], "scores": [1]}, "fewer than two answers"),
    (N_WAY, {**N_WAY, "completions": [], "scores": []}, "fewer than two answers"),
    (N_WAY, {**N_WAY, "completions": "ab"}, "completions: not a list"),
    (N_WAY, {**N_WAY, "completions": ["a", 2]}, "completion: not messages of role and content"),
    (N_WAY, {**N_WAY, "completions": ["a", "b", "a"], "scores": [1, 2, 3]}, "one answer at two ranks"),
    (RANKED, {**RANKED, "ranks": [0]}, "not as many ranks as completions"),
    (RANKED, {**RANKED, "ranks": ["first", "second"]}, "ranks: not finite numbers"),
    (HH, {"chosen": HH["chosen"], "rejected": HH["chosen"]}, "chosen equal to rejected"),
    (HH, {"chosen": HH["chosen"] + "\n\nHuman: so", "rejected": HH["rejected"]},
     "a conversation that does not end with the assistant"),
    (HH, {"chosen": HH["chosen"], "rejected": "\n\nHuman: other\n\nAssistant: r"},
     "two conversations without a common beginning"),
    (HH, {"chosen": "one thing", "rejected": "another"}, "two answers without a common beginning"),
    (HH, {"chosen": "\n\nHuman: \n\nAssistant: c", "rejected": HH["rejected"]}, "an empty user message"),
    ({"input": "i", "output_1": "a", "output_2": "b", "label": 1},
     {"input": "i", "output_1": "a", "output_2": "b", "label": 0}, "a label that is neither 1 nor 2"),
    ({"instruction": "i", "completions": [{"response": "a", "overall_score": 1},
                                          {"response": "b", "overall_score": 2}]},
     {"instruction": "i", "completions": [{"response": "a"}, {"response": "b"}]}, "fewer than two rated responses"),
    ({"prompt": {"text": "q", "role": "prompter", "replies": [{"text": "a", "role": "assistant", "rank": 0},
                                                               {"text": "b", "role": "assistant", "rank": 1}]}},
     {"prompt": {"text": "q", "role": "prompter", "deleted": True, "replies": []}},
     "a tree whose prompt is missing, deleted or empty"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "reason"), EXAMPLES)
def test_an_unusable_example_is_counted(good, bad, reason):
    found = load_examples([good, bad, good])
    assert len(found) == 2 and found.skipped == {reason: 1}
    assert any(f"left out 1: {reason} (first: row 2" in note for note in found.notes)


@pytest.mark.parametrize(("good", "bad", "reason"), RANKINGS)
def test_an_unusable_ranking_is_counted(good, bad, reason):
    found = load_rankings([good, bad, good])
    assert len(found) == 2 and found.skipped == {reason: 1}
    assert any(f"left out 1: {reason} (first: row 2" in note for note in found.notes)


def test_nothing_left_says_why():
    with pytest.raises(DataError) as caught:
        load_rankings([{**PAIR, "rejected": "c"}, {**PAIR, "chosen": ""}, {**PAIR, "rejected": "c"}])
    message = str(caught.value)
    assert "no rankings are left of 3 rows, taken for the shape preference (prompt, chosen, rejected)" in message
    assert "2: chosen equal to rejected (first: row 1)" in message and "1: a best answer that is empty" in message


def test_an_unknown_role_is_named():
    rows = [CHAT, {"messages": [USER, {"role": "narrator", "content": "x"}]}]
    assert any("'narrator'; known are ai, answer, assistant," in note for note in load_examples(rows).notes)


def test_a_worse_answer_may_be_empty():
    [ranking] = load_rankings([{**PAIR, "rejected": ""}]).rankings
    assert ranking.completions == ("c", "")


def test_scores_that_contradict_or_are_broken_are_left_out_and_said():
    found = load_rankings([{**PAIR, "score_chosen": 1, "score_rejected": 2}])
    assert found.rankings[0].scores == ()
    assert any(
        "in 1 rows, scores that do not put the chosen answer first were left out" in note for note in found.notes
    )
    found = load_rankings([{**RANKED, "scores": [1, 2]}, {**RANKED, "scores": [math.nan, 1]}, {**RANKED, "scores": []}])
    assert [ranking.scores for ranking in found.rankings] == [(), (), ()]
    assert sum("in 1 rows," in note for note in found.notes) == 2


def test_wrong_sources_and_settings():
    with pytest.raises(DataError, match=r"row 1: found a str; expected a dict"):
        load_examples(["text"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="holds no rows"):
        load_rankings([])
    with pytest.raises(DataError, match="no examples were named"):
        load_examples()
    with pytest.raises(SettingsError, match="limit is -1"):
        load_examples([CHAT], RowSettings(limit=-1))
    assert len(load_examples([CHAT] * 3, RowSettings(limit=2))) == 2


def test_an_empty_system_message_says_nothing():
    [example] = load_examples([{"messages": [{"role": "system", "content": ""}, USER, ASSISTANT]}]).examples
    assert example.messages == (USER, ASSISTANT)


def test_pandas_and_numpy_cells():
    numpy = pytest.importorskip("numpy")
    row = {"prompt": "p", "completions": numpy.array(["a", "b"], dtype=object), "scores": numpy.array([1.0, 2.0])}
    assert load_rankings([row]).rankings[0].ranks == (1, 0)
    row = {"messages": numpy.array([USER, ASSISTANT], dtype=object)}
    assert load_examples([row]).examples[0].messages == (USER, ASSISTANT)
    assert load_examples([{**COMPLETION, "label": numpy.bool_(True)}]).examples


def test_broken_conversations_are_counted_among_prompts_too(chat_codec):
    found = load_prompts(
        [{"prompt": [USER]}, {"prompt": [USER, {"role": "narrator", "content": "x"}]}, {"prompt": [USER, ASSISTANT]}],
        codec=chat_codec,
    )
    assert found.prompts == ["^[user]q[assistant]", "^[user]q[assistant]a"], "the last message is continued"
    assert found.columns == {"prompt_messages": [[USER], [USER, ASSISTANT]]}
    assert sum("left out 1:" in note for note in found.notes) == 1


def test_half_characters_are_counted(tmp_path):
    """JSON can hold one half of an emoji, as texts that were cut off do; tokenizers raise at it."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a\\ud83d", "completion": "b"}\n{"prompt": "\\ud83d\\ude00", "completion": "b"}\n')
    assert load_examples(path).skipped == load_examples(path, RowSettings(chat="on")).skipped
    (reason,) = load_examples(path).skipped
    assert reason.startswith("half a character") and load_examples(path).examples[0].prompt == "\U0001f600"
    found = load_prompts(path)
    assert found.prompts == ["\U0001f600"] and any(
        f"left out 1: {reason} (first: row 1)" in note for note in found.notes
    )
    said = [{"role": "user", "content": "\ud83d"}]
    rows = [{"prompt": said, "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": "b\ud83d"}]
    assert load_rankings([*rows, {"prompt": "p", "chosen": "a", "rejected": "b"}]).skipped == {reason: 2}
