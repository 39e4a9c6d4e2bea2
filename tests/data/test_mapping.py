"""``data.columns``: other names, several columns as one, verdicts of annotators, and what is refused."""

from __future__ import annotations

import pytest

from lmrl.data import PromptSettings, RowSettings, load_examples, load_prompts, load_rankings
from lmrl.data.logged import load_logged
from lmrl.errors import DataError, SettingsError


@pytest.mark.parametrize(
    ("row", "columns", "asked", "said"),
    [
        ({"instruction": "q", "response": "a"}, {"completion": "response"}, "q", "a"),
        ({"instruction": "q", "response": "a"}, {"prompt": "instruction", "completion": "response"}, "q", "a"),
        ({"prompt": "q", "response": "a"}, {"completion": "response"}, "q", "a"),
        ({"query": "q", "response": "a"}, {"prompt": "query", "completion": "response"}, "q", "a"),
        ({"problem": "q", "solution": "a"}, {"prompt": "problem", "completion": "solution"}, "q", "a"),
        ({"problem": "q", "solution": "a"}, {"question": "problem", "answer": "solution"}, "q", "a"),
        (
            {"Body": "b", "Question": "q", "Answer": 7},
            {"context": "Body", "question": "Question", "answer": "Answer"},
            "b\n\nq",
            "7",
        ),
        (
            {"question": "q", "options": ["A)1", "B)2"], "correct": "B"},
            {"choices": "options", "answer": "correct"},
            "q\n\nA)1\nB)2",
            "B)2",
        ),
        (
            {"question": "q", "A": "one", "B": "two", "answer": "B"},
            {"choices": ["A", "B"]},
            "q\n\nA. one\nB. two",
            "B. two",
        ),
        (
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            {"answer": "answerKey"},
            "q\n\n1. x\n2. y",
            "2. y",
        ),
        ({"question": "q", "docs": ["d", "e"], "answer": "a"}, {"context": "docs"}, "d\n\ne\n\nq", "a"),
        ({"meta": "s", "prompt": "q", "completion": "a"}, {"system": "meta"}, "q", "a"),
    ],
)
def test_examples_and_prompts_of_public_layouts(row, columns, asked, said, chat_codec):
    [example] = load_examples([row], RowSettings(columns=columns, chat="on")).examples
    assert [item["content"] for item in example.messages[-2:]] == [asked, said]
    prompts = load_prompts([row], PromptSettings(columns=columns, chat="on"), codec=chat_codec)
    assert prompts.columns["prompt_messages"][0][-1] == {"role": "user", "content": asked}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {"instruction": "q", "response_a": "c", "response_b": "r"},
            {"chosen": "response_a", "rejected": "response_b"},
        ),
        ({"query": "q", "good": "c", "bad": "r"}, {"prompt": "query", "chosen": "good", "rejected": "bad"}),
        ({"question": "q", "win": "c", "lose": "r"}, {"chosen": "win", "rejected": "lose"}),
        ({"q": "q", "1": "r", "2": "c", "v": 2}, {"question": "q", "completions": ["1", "2"], "preferences": "v"}),
        ({"q": "q", "1": "r", "2": "c", "v": "B"}, {"prompt": "q", "completions": ["1", "2"], "preferences": "v"}),
        (
            {"q": "q", "1": "r", "2": "c", "v": "model_b"},
            {"prompt": "q", "completions": ["1", "2"], "preferences": "v"},
        ),
        ({"q": "q", "x": "r", "y": "c", "v": "y"}, {"prompt": "q", "completions": ["x", "y"], "preferences": "v"}),
        ({"instruction": "q", "a": "r", "b": "c", "s": [1, 2]}, {"completions": ["a", "b"], "scores": "s"}),
    ],
)
def test_pairs_of_public_layouts(row, columns):
    for chat in ("on", "off"):
        [ranking] = load_rankings([row], RowSettings(columns=columns, chat=chat)).rankings
        asked = ranking.prompt if chat == "off" else ranking.prompt[0]["content"]
        better, worse = ranking.pairs()[0]
        assert (asked, ranking.completions[better], ranking.completions[worse]) == ("q", "c", "r")


PANDALM = {"instruction": "i", "input": float("nan"), "response1": "one", "response2": "two"}
ANNOTATORS = {"completions": ["response1", "response2"], "preferences": ["annotator1", "annotator2", "annotator3"]}


def test_several_annotators_in_one_row():
    votes = [(2, 2, 2), (1, 1, 2), (0, 0, 0), (1, 2, 0), (1, 0, 0), (None, 1, 1), (3, 1, 1)]
    rows = [{**PANDALM, **dict(zip(ANNOTATORS["preferences"], vote, strict=True))} for vote in votes]
    found = load_rankings(rows, RowSettings(columns=ANNOTATORS))
    assert [ranking.ranks for ranking in found.rankings] == [(1, 0), (0, 1), (0, 1), (0, 1)]
    assert found.rankings[0].prompt[0]["content"] == "i", "a missing input is no text"
    assert found.skipped == {
        "answers that all tie": 1,
        "annotators who disagree without a majority": 1,
        "a preference that names none of the completions and no tie": 1,
    }
    assert any("in 2 rows, the annotators disagree, and the majority decides" in note for note in found.notes)


def test_a_verdict_for_every_pair():
    row = {"question": "q", **{f"prediction {place}": text for place, text in enumerate("abcd", start=1)}}
    columns = {"completions": [f"prediction {place}" for place in (1, 2, 3, 4)], "preferences": "preference"}
    rows = [{**row, "preference": verdict} for verdict in ([0, 1, 2, 1, 0, 2], [1, 1, 1, 1, 1, 1], [1, 2, 1, 1, 2, 1])]
    found = load_rankings([*rows, {**row, "preference": [1, 2]}], RowSettings(columns=columns))
    # Pairs won, a tie as one half: 1.5, 2, 0, 2.5; then 3, 2, 1, 0; then 2, 1, 2, 1.
    assert [ranking.ranks for ranking in found.rankings] == [(2, 1, 3, 0), (0, 1, 2, 3), (0, 1, 0, 1)]
    assert found.skipped == {"not as many preferences as pairs": 1}
    assert any("form a circle" in note for note in found.notes)


def test_labelled_texts_train_a_reward_model():
    rows = [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}, {"text": "poor film", "label": 0}]
    found = load_rankings([*rows, {"text": "a film", "label": 5}])
    assert [(item.prompt, item.completions, item.ranks) for item in found.rankings] == [
        ("", ("good film", "bad film"), (0, 1)),
        ("", ("good film", "poor film"), (0, 1)),
    ]
    assert found.skipped == {"a label that is neither true nor false": 1}
    mapped = [{"sentence": row["text"], "stars": row["label"]} for row in rows]
    assert len(load_rankings(mapped, RowSettings(columns={"text": "sentence", "label": "stars"}))) == 2
    with pytest.raises(DataError, match="a text without any of the other label"):
        load_rankings(rows[:1])


def test_logged_answers_are_mapped_too():
    rows = [{"query": "q", "reply": "a", "stars": 0.5}, {"query": "q", "reply": "b", "stars": -1}]
    columns = {"prompt": "query", "completion": "reply", "reward": "stars"}
    assert [item.reward for item in load_logged("reward", rows, RowSettings(columns=columns)).answers] == [0.5, -1.0]


def test_wrong_mappings_name_the_nearest():
    row = {"query": "q", "response": "a"}
    for read, settings in ((load_examples, RowSettings), (load_rankings, RowSettings), (load_prompts, PromptSettings)):
        with pytest.raises(SettingsError, match=r"columns: unknown column name 'promt'; did you mean 'prompt'"):
            read([row], settings(columns={"promt": "query"}))
        with pytest.raises(DataError, match=r"columns.prompt: unknown column 'querry'; did you mean 'query'"):
            read([row], settings(columns={"prompt": "querry"}))
        with pytest.raises(SettingsError, match=r"columns.prompt names 2 columns; expected one"):
            read([row], settings(columns={"prompt": ["query", "response"]}))
        with pytest.raises(SettingsError, match=r"columns.prompt is 3; expected the name of a column"):
            read([row], settings(columns={"prompt": 3}))


def test_a_column_that_a_mapping_replaces_is_named():
    row = {"prompt": "old", "question": "q", "answer": "a"}
    found = load_examples([row], RowSettings(columns={"prompt": "question"}))
    assert found.examples[0].prompt == "q"
    assert any("reads question as 'prompt'; the column 'prompt' is not used" in note for note in found.notes)


@pytest.mark.parametrize(
    ("read", "row", "mapping"),
    [
        (
            load_examples,
            {"query": "q", "response": "a"},
            'data.columns.prompt="query" data.columns.completion="response"',
        ),
        (load_examples, {"instruction": "q", "response": "a"}, 'data.columns.completion="response"'),
        (load_rankings, {"q": "q", "question": "q", "better": "a", "worse": "b"}, 'data.columns.chosen="better"'),
        (
            load_rankings,
            {"instruction": "i", "response1": "a", "response2": "b", "annotator1": 1},
            'data.columns.completions=["response1", "response2"] data.columns.preferences="annotator1"',
        ),
        (load_prompts, {"problem": "q", "level": 1}, 'prompts.file.columns.prompt="problem"'),
    ],
)
def test_an_unknown_shape_comes_with_a_mapping_to_try(read, row, mapping):
    with pytest.raises(DataError) as caught:
        read([row])
    assert f"Perhaps: {mapping}" in str(caught.value) or mapping in str(caught.value)
