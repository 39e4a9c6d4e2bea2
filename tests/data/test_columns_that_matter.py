"""Columns and keys that change a row's meaning are used, named in a note, or refused with the mapping to give."""

from __future__ import annotations

import json

import pytest

from lmrl.data import PromptSettings, RowSettings, load_examples, load_prompts, load_rankings
from lmrl.data.logged import load_logged
from lmrl.errors import DataError
from lmrl.text.conversation import variables_of

Q, S = "What is the capital of France?", "Answer in one sentence."
BETTER, WORSE = "The capital of France is Paris.", "The capital of France is Lyon."
PAIR = {"chosen": BETTER, "rejected": WORSE}
CITIES = ["Lyon", "Paris", "Nice"]
LISTED = f"{Q}\n\nA. Lyon\nB. Paris\nC. Nice"
USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def message(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize("column", ["question", "instruction"])
def test_the_question_beside_a_pair_is_its_prompt(column):
    [ranking] = load_rankings([{column: Q, **PAIR}]).rankings
    assert ranking.prompt == (message("user", Q),) and ranking.completions == (BETTER, WORSE)
    [example] = load_examples([{column: Q, **PAIR}]).examples
    assert example.messages == (message("user", Q), message("assistant", BETTER))
    assert load_prompts([{column: Q, **PAIR}]).prompts == [Q]


@pytest.mark.parametrize("column", ["query", "problem", "post", "input", "body"])
def test_text_beside_a_pair_without_a_prompt_is_refused_with_the_mapping(column):
    for read in (load_rankings, load_examples, load_prompts):
        with pytest.raises(DataError, match=rf'columns.prompt = "{column}" if it is the prompt'):
            read([{column: Q, **PAIR}])
    [ranking] = load_rankings([{column: Q, **PAIR}], RowSettings(columns={"prompt": column})).rankings
    assert ranking.prompt == Q
    [ranking] = load_rankings([{column: Q, **PAIR}], RowSettings(columns={"unused": column})).rankings
    assert ranking.prompt == "The capital of France is"


def test_a_source_beside_a_pair_is_named_and_no_prompt():
    found = load_rankings([{"source": "web", "id": "a1", **PAIR}])
    assert found.rankings[0].prompt == "The capital of France is"
    assert any("'source' (1 rows), 'id' (1 rows)" in note for note in found.notes)


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": Q, "completion": "c"}, "c"),
        ({"prompt": [message("user", Q)], "completion": [message("assistant", "c")]}, "c"),
        ({"prompt": Q, **PAIR}, BETTER),
        ({"question": Q, **PAIR}, BETTER),
        ({"question": Q, "answer": "c"}, "c"),
        ({"input": Q, "target": "c"}, "c"),
        ({"instruction": Q, "output": "c"}, "c"),
        ({"prompt": Q, "completion": "c", "label": True}, "c"),
        ({"messages": [message("user", Q), message("assistant", "c")]}, "c"),
        ({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": "c"}]}, "c"),
        ({"prompt": Q, "completions": ["c", "d"], "ranks": [0, 1]}, "c"),
        ({"prompt": Q, "completions": ["c", "d"], "scores": [2, 1]}, "c"),
        ({"chosen": [message("user", Q), message("assistant", "c")], "rejected": [message("user", Q), ASSISTANT]}, "c"),
    ],
)
def test_a_system_column_is_the_system_turn(row, answer, column, chat_codec):
    asked = (message("system", S), message("user", Q))
    [example] = load_examples([{column: S, **row}]).examples
    assert example.messages == (*asked, message("assistant", answer))
    if "chosen" in row or "ranks" in row:
        assert load_rankings([{column: S, **row}]).rankings[0].prompt == asked
    prompts = load_prompts([{column: S, **row}], codec=chat_codec)
    assert prompts.prompts == [f"^[system]{S}[user]{Q}[assistant]"]


def test_a_system_text_in_one_row_makes_conversations_of_all(chat_codec):
    rows = [{"prompt": "a", "system": S}, {"prompt": "b", "system": None}, {"prompt": [message("system", "T"), USER]}]
    found = load_prompts(rows, codec=chat_codec)
    assert found.prompts == [f"^[system]{S}[user]a[assistant]", "^[user]b[assistant]", "^[system]T[user]q[assistant]"]


@pytest.mark.parametrize("name", ["body", "passage", "hypothesis", "id"])
def test_text_that_is_not_used_is_named_with_its_count(name):
    rows = [{name: "some text", "question": Q, "answer": "Paris"}] * 2 + [{name: "", "question": "r", "answer": "b"}]
    found = load_examples(rows)
    assert sum(f"{name!r} (2 rows)" in note and "data.columns" in note for note in found.notes) == 1
    assert any(f"{name!r} (2 rows)" in note for note in load_prompts(rows).notes)
    assert not any(name in note for note in load_examples(rows, RowSettings(columns={"unused": name})).notes)


@pytest.mark.parametrize(
    "name", ["score", "rating", "Quality", "weight", "stars", "is_correct", "helpfulness", "toxicity"]
)
def test_a_judgement_that_is_not_used_is_named(name):
    found = load_examples([{"prompt": "p", "completion": "c", name: 0, "idx": 3}])
    assert any(f"{name!r} (1 rows)" in note and "idx" not in note for note in found.notes)


@pytest.mark.parametrize("name", ["Body", "passage", "background"])
def test_a_context_comes_before_the_question(name):
    row = {name: "France has a capital.", "question": Q, "answer": "Paris"}
    [example] = load_examples([row], RowSettings(columns={"context": name})).examples
    assert example.messages[0]["content"] == f"France has a capital.\n\n{Q}"
    assert load_prompts([row], PromptSettings(columns={"context": name})).prompts == [f"France has a capital.\n\n{Q}"]
    assert load_prompts([{"context": "C.", "question": Q, "answer": "x"}]).prompts == [f"C.\n\n{Q}"]
    assert load_prompts([{"context": "C.", "prompt": Q}]).prompts == [Q], "a prompt is complete"


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (CITIES, 1),
        (CITIES, "1"),
        (CITIES, "B"),
        (CITIES, "(b)"),
        (CITIES, "Paris"),
        (json.dumps(CITIES), "B."),
        ({"text": CITIES, "label": ["A", "B", "C"]}, "B"),
        ({"A": "Lyon", "B": "Paris", "C": "Nice"}, "B"),
        (["A) Lyon", "B) Paris", "C) Nice"], "B"),
    ],
)
def test_choices_are_listed_and_the_answer_names_one(choices, answer):
    row = {"question": Q, "choices": choices, "answer": answer}
    [example] = load_examples([row]).examples
    brought = isinstance(choices, list) and choices[0].startswith("A)")
    assert example.messages[0]["content"] == (LISTED.replace(". ", ") ") if brought else LISTED)
    assert example.messages[1]["content"] == ("B) Paris" if brought else "B. Paris")
    assert load_prompts([row]).columns["answer"] == ["B"]


def test_numbers_count_choices_from_one_where_they_reach_the_last():
    rows = [{"question": Q, "choices": CITIES, "answer": number} for number in (2, 3)]
    found = load_examples(rows)
    assert [item.messages[1]["content"] for item in found.examples] == ["B. Paris", "C. Nice"]
    assert any("count the choices from 1" in note for note in found.notes)
    assert any("count the choices from 0" in note for note in load_examples(rows[:1]).notes)
    beyond = load_examples([*rows, {"question": Q, "choices": CITIES, "answer": 7}])
    assert beyond.skipped == {"an answer that is none of the choices": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"question": Q, "options": CITIES, "answer": 1},
        {"question": Q, "options": {"A": "Lyon", "B": "Paris"}, "answer": "B"},
        {"question": Q, "endings": json.dumps(CITIES), "answer": "1"},
        {"prompt": Q, "choices": CITIES, "answer": "B"},
        {"prompt": Q, "options": CITIES, "completion": "B"},
        {"question": Q, "A": "Lyon", "B": "Paris", "answer": "B"},
        {"question": Q, "option_a": "Lyon", "option_b": "Paris", "answer": "b"},
    ],
)
def test_an_answer_that_means_nothing_without_its_options_is_refused_with_the_mapping(row):
    for read in (load_examples, load_prompts):
        with pytest.raises(DataError, match=r"mean nothing without .* Set .*columns.choices = "):
            read([row] * 3)


def test_answers_that_stand_alone_are_kept():
    assert load_examples([{"question": "2 + 2?", "tags": ["sums"], "answer": "4"}]).examples
    assert load_examples([{"question": "2 + 2?", "steps": ["a", "b"], "answer": "4"}]).examples
    row = {"prompt": LISTED, "options": CITIES, "answer": "B"}
    assert load_prompts([row]).prompts == [LISTED], "the prompt has the options already"


CHAT = {"messages": [USER, ASSISTANT]}


@pytest.mark.parametrize("bad", [False, 0, "false", -1])
@pytest.mark.parametrize("row", [CHAT, {"question": "q", "answer": "a"}, {"prompt": "q", "completion": "a"}])
def test_answers_that_are_labelled_as_bad_are_not_imitated_and_kto_takes_them(row, bad):
    rows = [{**row, "label": True}, {**row, "label": bad}, {**row, "label": True}]
    found = load_examples(rows)
    assert len(found) == 2 and found.skipped == {"a completion that is labelled as bad": 1}
    assert [answer.reward for answer in load_logged("label", rows).answers] == [1.0, 0.0, 1.0]


def test_an_answer_without_a_label_is_imitated():
    found = load_examples([{**CHAT, "label": label} for label in (True, None, False)])
    assert len(found) == 2 and found.skipped == {"a completion that is labelled as bad": 1}


def test_a_label_that_is_a_class_is_only_named():
    found = load_examples([{**CHAT, "label": kind} for kind in ("sports", "news")])
    assert len(found) == 2 and any("'label' (2 rows)" in note for note in found.notes)


@pytest.mark.parametrize(
    "tools",
    [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], TOOL, [TOOL["function"]], repr([TOOL])],
)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_reach_the_chat_template(tools, column):
    for row in (CHAT, {"prompt": "q", "completion": "a"}, {"question": "q", "answer": "a"}):
        [example] = load_examples([{**row, column: tools}]).examples
        assert variables_of(example.messages) == {"tools": [TOOL]}
    found = load_examples([CHAT | {column: "none of them"}, CHAT])
    assert found.skipped == {"tools: not a list of JSON schemas": 1}


def test_template_variables_reach_the_template(tmp_path, chat_codec):
    rows = [{"prompt": "q", "chat_template_kwargs": {"enable_thinking": False, "absent": None}}]
    [example] = load_examples([{**rows[0], "completion": "a"}]).examples
    assert variables_of(example.messages) == {"enable_thinking": False}
    found = load_prompts(rows, codec=chat_codec)
    assert found.prompts == ["^[user]q[assistant]"]
    assert any("does not render 'enable_thinking'" in note for note in found.notes)
    with pytest.raises(DataError, match="chat_template_kwargs with 'add_generation_prompt'"):
        load_prompts([{"prompt": "q", "chat_template_kwargs": {"add_generation_prompt": True}}], codec=chat_codec)


def test_keys_of_messages_are_kept_for_the_template():
    said = {**ASSISTANT, "reasoning_content": "hm", "weight": 0, "name": None}
    [example] = load_examples([{"messages": [USER, said, USER, {**ASSISTANT, "weight": 1}]}]).examples
    kept = {**ASSISTANT, "reasoning_content": "hm", "weight": 0}
    assert example.messages == (USER, kept, USER, ASSISTANT)
    unread = load_examples([CHAT, {"messages": [USER, {**ASSISTANT, "weight": 0}]}])
    assert unread.skipped == {"no assistant message of a weight above 0": 1}
    half = load_examples([CHAT, {"messages": [USER, {**ASSISTANT, "weight": 0.5}]}])
    assert half.skipped == {"a message weight that is neither 0 nor 1": 1}


@pytest.mark.parametrize(
    "calling",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"role": "tool_call", "content": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
    ],
)
def test_calls_of_tools_are_kept_in_one_form(calling):
    [example] = load_examples([{"messages": [USER, calling, {"role": "tool", "content": "2"}, ASSISTANT]}]).examples
    [call] = example.messages[1]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": {"x": 1}} and example.messages[1]["content"] == ""


@pytest.mark.parametrize("key", ["text", "value", "content"])
def test_text_parts_are_read_and_others_refused_by_name(key):
    parts = [{"type": "text", key: "one "}, {"type": "text", key: "two"}]
    [example] = load_examples([{"messages": [message("user", parts), ASSISTANT]}]).examples
    assert example.messages[0]["content"] == "one two"
    for kind in ("image", "image_url", "input_audio"):
        found = load_examples([CHAT, {"messages": [message("user", [*parts, {"type": kind, kind: "x"}]), ASSISTANT]}])
        assert any(f"a part of the kind {kind}" in note for note in found.notes)


@pytest.mark.parametrize("form", [json.dumps, repr])
def test_messages_and_lists_stored_as_text_are_read(form):
    said = [USER, ASSISTANT]
    assert load_examples([{"messages": form(said)}]).examples[0].messages == tuple(said)
    assert load_examples([{"prompt": form([USER]), "completion": form([ASSISTANT])}]).examples[0].messages == tuple(
        said
    )
    [ranking] = load_rankings([{"chosen": form(said), "rejected": form([USER, message("assistant", "b")])}]).rankings
    assert ranking.prompt == (USER,) and ranking.completions == ("a", "b")
    [ranking] = load_rankings([{"prompt": "p", "completions": form(["a", "b"]), "ranks": "[1, 0]"}]).rankings
    assert ranking.ranks == (1, 0)


@pytest.mark.parametrize("role", ["developer", "System", "chatbot", "ai", "Human"])
def test_other_names_of_roles(role):
    known = {"developer": "system", "System": "system", "chatbot": "assistant", "ai": "assistant", "Human": "user"}
    [example] = load_examples(
        [{"messages": [message("user", "u"), {"from": role, "value": "x"}, USER, ASSISTANT]}]
    ).examples
    assert example.messages[1]["role"] == known[role]


def test_several_assistant_messages_in_a_row_are_one_answer(chat_codec):
    rows = [{"messages": [USER, ASSISTANT, message("assistant", "b")]}]
    assert load_prompts(rows, codec=chat_codec).prompts == ["^[user]q[assistant]"]
    assert load_prompts(rows, codec=chat_codec).columns["answer"] == ["b"]
    assert load_examples(rows).examples[0].messages == tuple(rows[0]["messages"])


def test_a_prefilled_prompt_is_continued(chat_codec):
    rows = [{"prompt": [USER, message("assistant", "It")]}, {"prompt": [USER]}]
    found = load_prompts(rows, codec=chat_codec)
    assert found.prompts == ["^[user]q[assistant]It", "^[user]q[assistant]"]
    assert found.prompt_ids[0] == chat_codec.encode_plain(found.prompts[0])


@pytest.mark.parametrize("form", [lambda rows: {"messages": rows}, lambda rows: {"conversations": sharegpt(rows)}])
def test_the_answer_of_a_whole_conversation_is_noted(chat_codec, form):
    found = load_prompts([form([USER, ASSISTANT]), form([USER])], codec=chat_codec)
    assert found.prompts == ["^[user]q[assistant]"] * 2 and found.columns["answer"] == ["a", None]
    [note] = [note for note in found.notes if "end with the assistant" in note]
    assert "1 conversations" in note and "name the column prompt" in note


def sharegpt(messages):
    return [{"from": "gpt" if item is ASSISTANT else "human", "value": item["content"]} for item in messages]


def test_rows_whose_roles_the_template_refuses_are_left_out_and_counted(tmp_path, chat_codec):
    import copy

    refusing = copy.copy(chat_codec)
    refusing.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rows = [{"prompt": [message("system", "s"), USER], "n": 1}, {"prompt": [USER], "n": 2}]
    found = load_prompts(rows, codec=refusing)
    assert len(found) == 1 and found.columns == {"n": [2], "prompt_messages": [[USER]]}
    assert any(
        "left out 1: a conversation that the chat template cannot render (first: row 1" in n for n in found.notes
    )
    with pytest.raises(DataError, match=r"no prompts are left of 1.*no system"):
        load_prompts(rows[:1], codec=refusing)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", {"bytes": b"\x89PNG", "path": None}),
        ("images", ["cat.png"]),
        ("audio", {"array": [0.0], "sampling_rate": 16000}),
        ("video_1", "a.mp4"),
    ],
)
def test_rows_with_images_and_sounds_are_left_out_and_counted(name, value):
    rows = [{"question": Q, "answer": "Paris", name: value}, {"question": Q, "answer": "Paris", name: None}]
    reason = f"a column {name!r}, which no text model reads"
    assert [key.startswith(reason) for key in load_examples(rows).skipped] == [True]
    found = load_prompts(rows)
    assert len(found) == 1 and any(f"left out 1: {reason}" in note for note in found.notes)
    assert len(load_examples(rows, RowSettings(columns={"unused": name}))) == 2
    assert len(load_examples([{"question": Q, "answer": "a", "image_id": 3, "n_images": 2}])) == 1
