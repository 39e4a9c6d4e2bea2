"""Prompts from lists and rows: shapes, templates, empty rows, splits and fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmrl.data import PromptSet, PromptSettings, load_prompts, load_rows
from lmrl.errors import DataError, SettingsError


def test_a_list_of_texts():
    found = load_prompts(["one", "two"])
    assert found.prompts == ["one", "two"] and found.columns == {} and found.prompt_ids is None
    assert len(found) == 2


@pytest.mark.parametrize(
    ("row", "shape", "prompt", "columns"),
    [
        ({"prompt": "p", "answer": 4}, "prompt", "p", {"answer": 4}),
        ({"prompt": "p", "completion": "c"}, "prompt and completion", "p", {"completion": "c"}),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference", "p", {"chosen": "c", "rejected": "r"}),
        (
            {"instruction": "i", "input": "", "output": "o"},
            "alpaca",
            "i",
            {"instruction": "i", "input": "", "output": "o", "answer": "o"},
        ),
        (
            {"instruction": "i", "input": "x", "output": "o"},
            "alpaca",
            "i\n\nx",
            {"instruction": "i", "input": "x", "output": "o", "answer": "o"},
        ),
        ({"question": "q", "answer": "a"}, "question and answer", "q", {"question": "q", "answer": "a"}),
        ({"input": "i", "target": "t"}, "input and target", "i", {"input": "i", "target": "t", "answer": "t"}),
        ({"instruction": "i", "completions": []}, "ultrafeedback", "i", {"instruction": "i", "completions": []}),
    ],
)
def test_every_shape_keeps_its_columns(row, shape, prompt, columns):
    found = load_prompts([row])
    assert (found.shape, found.prompts) == (shape, [prompt])
    assert found.columns == {name: [value] for name, value in columns.items()}
    assert shape in found.notes[0]


def test_an_unknown_shape_says_what_was_found_and_what_is_nearest():
    with pytest.raises(DataError) as caught:
        load_prompts([{"id": 1, "instruction": "i", "outputs": "o"}])
    message = str(caught.value)
    assert "id, instruction, outputs" in message
    assert "Nearest: alpaca, which also needs 'output'" in message
    assert "question and answer (question, answer)" in message and "column =" in message


def test_a_named_column_and_a_misspelt_one():
    rows = [{"sentence": "s", "label": 1}]
    found = load_prompts(rows, PromptSettings(column="sentence"))
    assert found.prompts == ["s"] and found.columns["label"] == [1]
    with pytest.raises(DataError, match="did you mean 'sentence'"):
        load_prompts(rows, PromptSettings(column="sentense"))


def test_a_template_is_made_of_columns_and_keeps_the_answer():
    found = load_prompts([{"input": "2+2", "target": "4"}], PromptSettings(template="Q: {input}\nA:"))
    assert found.prompts == ["Q: 2+2\nA:"] and found.columns["answer"] == ["4"]
    found = load_prompts(["hello"], PromptSettings(template="{{x}} {prompt}!"))
    assert found.prompts == ["{x} hello!"]
    found = load_prompts([{"a": 1, "b": None}], PromptSettings(template="{a}-{b}"))
    assert found.prompts == ["1-"] and found.shape == "template"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{qestion}", "did you mean 'question'"),
        ("{question", "is broken"),
        ("{question.__class__}", "unknown column"),
        ("Tell me.", "names no column"),
    ],
)
def test_a_wrong_template_is_refused(template, message):
    with pytest.raises(DataError, match=message):
        load_prompts([{"question": "q", "answer": "a"}], PromptSettings(template=template))


def test_a_template_takes_no_lists():
    with pytest.raises(DataError, match=r"row 1: the column 'names' holds a list"):
        load_prompts([{"prompt": "p", "names": []}], PromptSettings(template="{names}"))


def test_empty_prompts_are_left_out_and_counted():
    found = load_prompts([{"prompt": "a", "n": 1}, {"prompt": "  ", "n": 2}, {"prompt": None, "n": 3}])
    assert found.prompts == ["a"] and found.columns == {"n": [1]}
    assert any("left out 2: an empty prompt (first: row 2)" in note for note in found.notes)
    assert len(load_prompts([{"q": ""}, {"q": "b"}], PromptSettings(template="Q: {q}"))) == 1
    with pytest.raises(DataError, match=r"no prompts are left of 2 rows.*2: an empty prompt \(first: row 1\)"):
        load_prompts(["", " "])
    with pytest.raises(DataError, match="holds no rows"):
        load_prompts([])
    with pytest.raises(DataError, match=r"no prompts were named.*prompts\.file\.path"):
        load_prompts()


def test_wrong_rows_are_named_by_number():
    with pytest.raises(DataError, match="row 2: found a int"):
        load_prompts(["a", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="row 2: the prompt is a float"):
        load_prompts([{"prompt": "a"}, {"prompt": 0.5}])
    with pytest.raises(DataError, match="row 2: no 'prompt'"):
        load_prompts([{"prompt": "a"}, {"answer": "b"}])


def test_a_column_with_the_name_of_a_reward_argument_is_left_out_and_noted():
    found = load_prompts([{"prompt": "a", "responses": ["x"]}])
    assert found.columns == {} and any("'responses' was left out" in note for note in found.notes)


def test_token_ids_need_a_text_or_a_tokenizer(letters):
    ids = letters.encode("hi")
    rows = [{"prompt_ids": ids}]
    with pytest.raises(DataError, match="row 1: prompt_ids without a text"):
        load_prompts(rows)
    found = load_prompts(rows, codec=letters)
    assert found.prompts == ["hi"] and found.prompt_ids == [ids] and found.columns == {}
    found = load_prompts([{"prompt_ids": [1], "prompt": "text"}])
    assert found.prompts == ["text"] and found.prompt_ids == [[1]]
    with pytest.raises(DataError, match="whole numbers"):
        load_prompts([{"prompt_ids": "abc"}])
    with pytest.raises(DataError, match="expected one kind"):
        load_prompts([{"prompt": "a", "prompt_ids": [1]}, {"prompt": "a", "prompt_ids": None}])


def test_messages_go_through_the_chat_template_once(chat_codec, letters):
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "answer": "a"}]
    found = load_prompts(rows, codec=chat_codec)
    assert found.prompts == ["^[user]hi[assistant]"]
    assert found.columns == {"answer": ["a"], "prompt_messages": [[{"role": "user", "content": "hi"}]]}
    assert found.prompt_ids == [chat_codec.encode_plain("^[user]hi[assistant]")]
    with pytest.raises(DataError, match="row 1: the prompt is a list of messages, and no tokenizer was given"):
        load_prompts(rows)
    with pytest.raises(DataError, match=r"row 1: .*need a chat template.*template = "):
        load_prompts(rows, codec=letters)


CHAT_ROWS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {
        "chosen": "\n\nHuman: q\n\nAssistant: a",
        "rejected": "\n\nHuman: q\n\nAssistant: b",
    },
    {
        "prompt": {
            "text": "q",
            "role": "prompter",
            "replies": [
                {"text": "b", "role": "assistant", "rank": 1, "replies": []},
                {"text": "a", "role": "assistant", "rank": 0, "replies": []},
            ],
        }
    },
]


@pytest.mark.parametrize("row", CHAT_ROWS)
def test_a_conversation_is_a_prompt_up_to_its_last_answer(row, chat_codec):
    found = load_prompts([row], codec=chat_codec)
    assert found.prompts == ["^[user]q[assistant]"] and found.columns["answer"] == ["a"]
    assert found.columns["prompt_messages"] == [[{"role": "user", "content": "q"}]]
    found = load_prompts([row], PromptSettings(chat="off"))
    assert found.prompts == ["q"] and found.prompt_ids is None and "prompt_messages" not in found.columns


def test_a_conversation_without_an_answer_is_a_prompt_as_a_whole(chat_codec):
    rows = [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}]
    found = load_prompts(rows, codec=chat_codec)
    assert found.prompts == ["^[system]s[user]q[assistant]"] and found.columns["answer"] == [None]
    with pytest.raises(DataError, match="1: a conversation that is more than one question"):
        load_prompts(rows, PromptSettings(chat="off"))


def test_texts_and_messages_together_need_to_be_made_one_kind(chat_codec):
    rows = [{"prompt": [{"role": "user", "content": "q"}]}, {"prompt": "q"}]
    with pytest.raises(DataError, match=r'1 prompts are .* messages and 1 are text; expected one kind .*chat = "on"'):
        load_prompts(rows, codec=chat_codec)
    assert load_prompts(rows, PromptSettings(chat="on"), chat_codec).prompts == ["^[user]q[assistant]"] * 2
    assert load_prompts(rows, PromptSettings(chat="off"), chat_codec).prompts == ["q", "q"]


def test_chat_makes_messages_of_text(chat_codec, tmp_path):
    on = PromptSettings(chat="on")
    found = load_prompts(["q"], on, codec=chat_codec)
    assert found.prompts == ["^[user]q[assistant]"]
    found = load_prompts([{"question": "q"}], PromptSettings(chat="on", template="Q: {question}"), codec=chat_codec)
    assert found.prompts == ["^[user]Q: q[assistant]"]
    found = load_prompts([{"instruction": "q", "output": "a"}], on, codec=chat_codec)
    assert found.prompts == ["^[user]q[assistant]"] and found.columns["answer"] == ["a"]
    path = tmp_path / "prompts.txt"
    path.write_text("q\n")
    [row] = load_rows(PromptSettings(path=str(path), chat="on"))
    assert row == {"prompt": [{"role": "user", "content": "q"}]}


def test_rows_for_plugins_keep_messages_and_columns(tmp_path: Path):
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "answer": "a"}]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(rows))
    assert load_rows(PromptSettings(path=str(path))) == rows
    path.write_text(json.dumps([{"question": "q", "answer": "a"}]))
    assert load_rows(PromptSettings(path=str(path))) == [{"prompt": "q", "question": "q", "answer": "a"}]


def test_limit_counts_prompts():
    assert load_prompts(["", "a", "b", "c"], PromptSettings(limit=2)).prompts == ["a", "b"]
    with pytest.raises(SettingsError, match="limit is -1"):
        load_prompts(["a"], PromptSettings(limit=-1))


def test_the_held_out_split_is_deterministic_and_survives_a_new_order():
    prompts = [f"prompt {number}" for number in range(100)]
    whole = PromptSet(prompts, {"n": list(range(100))})
    training, held_out = whole.split(10, seed=3)
    assert (len(training), len(held_out)) == (90, 10)
    assert sorted(training.prompts + held_out.prompts) == sorted(prompts)
    assert [f"prompt {number}" for number in held_out.columns["n"]] == held_out.prompts
    assert set(PromptSet(prompts[::-1]).split(10, seed=3)[1].prompts) == set(held_out.prompts)
    assert set(whole.split(10, seed=4)[1].prompts) != set(held_out.prompts)
    assert len(whole.split(0.25)[1]) == 25
    assert len(whole.split(0)[1]) == 0


def test_equal_prompts_stay_on_one_side():
    whole = PromptSet([f"prompt {number % 20}" for number in range(100)])
    training, held_out = whole.split(12)
    assert len(held_out) == 10, "two prompts, five times each: a third would be more than 12"
    assert not set(training.prompts) & set(held_out.prompts)
    with pytest.raises(SettingsError, match="more distinct prompts"):
        PromptSet(["same"] * 10).split(3)


@pytest.mark.parametrize("held_out", [-1, 1.5, 10, 11, 0.01])
def test_a_wrong_number_of_held_out_prompts_is_refused(held_out):
    with pytest.raises(SettingsError, match="held_out"):
        PromptSet([str(number) for number in range(10)]).split(held_out)


def test_the_fingerprint_changes_with_content_and_not_with_the_columns_order():
    first = PromptSet(["a", "b"], {"x": [1, 2], "y": [3, 4]})
    assert first.fingerprint() == PromptSet(["a", "b"], {"y": [3, 4], "x": [1, 2]}).fingerprint()
    others = [
        PromptSet(["b", "a"], {"x": [1, 2], "y": [3, 4]}),
        PromptSet(["a", "b"], {"x": [1, 2], "y": [3, 5]}),
        PromptSet(["a", "b"], {"x": [1, 2]}),
        PromptSet(["a"], {"x": [1], "y": [3]}),
        PromptSet(["a", "b"], {"x": [1, 2], "y": [3, 4]}, [[1], [2]]),
    ]
    assert len({item.fingerprint() for item in [first, *others]}) == 6
    assert first.fingerprint().startswith("3cbc57a22a2c01ee"), "a run of an older version could not be resumed"


def test_select_may_repeat():
    chosen = PromptSet(["a", "b"], {"x": [1, 2]}, [[1], [2]]).select([1, 1, 0])
    assert chosen.prompts == ["b", "b", "a"] and chosen.columns == {"x": [2, 2, 1]}
    assert chosen.prompt_ids == [[2], [2], [1]]
