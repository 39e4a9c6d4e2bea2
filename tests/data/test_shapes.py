"""Rows of every shape, written by hand: what they become as examples, as rankings, and as prompts."""

from __future__ import annotations

import json
import re

import pytest

from lmrl.data import (
    ChatExample,
    CompletionExample,
    PromptSettings,
    Ranking,
    RowSettings,
    load_examples,
    load_rankings,
    load_rows,
)
from lmrl.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def chat(*messages: dict[str, str]) -> ChatExample:
    return ChatExample(messages)


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": name, "value": value} for name, value in turns]


FIRST_TURNS = [user("hi"), says("hello"), user("how are you")]
TRANSCRIPT = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how are you\n\nAssistant:"
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "text": "q",
        "role": "prompter",
        "replies": [
            {"text": "bad", "role": "assistant", "rank": 2, "replies": []},
            {
                "text": "good",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {"text": "dead end", "role": "prompter", "replies": []},
                    {
                        "text": "and then",
                        "role": "prompter",
                        "replies": [
                            {"text": "later better", "role": "assistant", "rank": 0, "replies": []},
                            {"text": "later worse", "role": "assistant", "rank": 1, "replies": []},
                        ],
                    },
                ],
            },
            {"text": "gone", "role": "assistant", "rank": 1, "deleted": True, "replies": []},
            {"text": "unranked", "role": "assistant", "rank": None, "replies": []},
        ],
    },
}
RATED = {
    "instruction": "i",
    "completions": [
        {"response": "fair", "annotations": {"helpfulness": {"Rating": "3"}, "honesty": {"Rating": "N/A"}}},
        {"response": "good", "annotations": {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "4"}}},
        {"response": "old", "annotations": {"helpfulness": {"Rating": "N/A"}}, "overall_score": 2.0},
        {"response": "unrated", "annotations": {}},
    ],
}

EXAMPLES = [
    ({"messages": [system("be"), user("hi"), says("yes")]}, "chat", chat(system("be"), user("hi"), says("yes"))),
    ({"messages": [*FIRST_TURNS, says("fine"), user("bye")]}, "chat", chat(*FIRST_TURNS, says("fine"))),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                says("c"),
            ]
        },
        "chat",
        chat(user("ab"), says("c")),
    ),
    ({"conversations": sharegpt(("human", "q"), ("gpt", "a"))}, "sharegpt", chat(user("q"), says("a"))),
    (
        {"system": "be", "conversations": sharegpt(("human", "q"), ("gpt", "a"))},
        "sharegpt",
        chat(system("be"), user("q"), says("a")),
    ),
    ({"prompt": "p", "completion": " c"}, "prompt and completion", CompletionExample("p", " c")),
    ({"prompt": [user("p")], "completion": [says("c")]}, "prompt and completion", chat(user("p"), says("c"))),
    (
        {"prompt": "p", "completion": [says("c"), user("d"), says("e")]},
        "prompt and completion",
        chat(user("p"), says("c"), user("d"), says("e")),
    ),
    ({"prompt": "p", "completion": "c", "label": True}, "labelled", CompletionExample("p", "c")),
    ({"instruction": "i", "input": "x", "output": "o"}, "alpaca", chat(user("i\n\nx"), says("o"))),
    ({"instruction": "i", "input": None, "output": "o"}, "alpaca", chat(user("i"), says("o"))),
    (
        {"instruction": "i", "output": "o", "system": "be", "history": [["a", "b"]]},
        "alpaca",
        chat(system("be"), user("a"), says("b"), user("i"), says("o")),
    ),
    ({"instruction": "i", "context": "x", "response": "o"}, "dolly", chat(user("i\n\nx"), says("o"))),
    ({"instruction": "i", "instances": [{"input": "", "output": "o"}]}, "seed tasks", chat(user("i"), says("o"))),
    ({"question": "q", "answer": "a"}, "question and answer", chat(user("q"), says("a"))),
    ({"input": "i", "target": "t"}, "input and target", chat(user("i"), says("t"))),
    ({"prompt": "p", "answer": 4}, "prompt and answer", CompletionExample("p", "4")),
    ({"prompt": "p", "solution": "s"}, "prompt and solution", CompletionExample("p", "s")),
    (
        {"prompt": "p", "completions": ["one", "two"], "labels": [True, 1]},
        "stepwise",
        CompletionExample("p", "one\ntwo"),
    ),
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference", CompletionExample("p", "c")),
    ({"prompt": "p", "completions": ["a", "b"], "ranks": [1, 0]}, "N-way ranked", CompletionExample("p", "b")),
    (TREE, "conversation trees", chat(user("q"), says("good"), user("and then"), says("later better"))),
    (RATED, "ultrafeedback", chat(user("i"), says("good"))),
]


@pytest.mark.parametrize(("row", "shape", "expected"), EXAMPLES)
def test_a_row_becomes_an_example(row, shape, expected):
    found = load_examples([row])
    assert (found.examples, found.shape, found.skipped) == ([expected], shape, {})
    assert f"1 examples of 1 rows, taken for the shape {shape}" in found.notes[0]


HH = {"chosen": f"{TRANSCRIPT} fine", "rejected": f"{TRANSCRIPT} go away"}
RANKINGS = [
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference", "p", ("c", "r"), (0, 1), (), {}),
    (
        {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 2, "score_rejected": "1.5", "margin": 0.5},
        "preference", "p", ("c", "r"), (0, 1), (2.0, 1.5), {"margin": 0.5},
    ),
    ({"prompt": [user("p")], "chosen": [says("c")], "rejected": [says("r")]}, "preference",
     (user("p"),), ("c", "r"), (0, 1), (), {}),
    ({"prompt": "p", "chosen": [user("p"), says("c")], "rejected": [user("p"), says("r")], "messages": []},
     "preference", (user("p"),), ("c", "r"), (0, 1), (), {"messages": []}),
    ({"prompt": "p", "chosen": [says("c")], "rejected": [says("r")]}, "preference",
     (user("p"),), ("c", "r"), (0, 1), (), {}),
    ({"chosen": [user("p"), says("c")], "rejected": [user("p"), says("r")]}, "implicit preference",
     (user("p"),), ("c", "r"), (0, 1), (), {}),
    (HH, "implicit preference", tuple(FIRST_TURNS), ("fine", "go away"), (0, 1), (), {}),
    ({"chosen": "Say it: yes", "rejected": "Say it: yonder"}, "implicit preference",
     "Say it:", (" yes", " yonder"), (0, 1), (), {}),
    ({"chosen": "Q?\nIt is", "rejected": "Q?\nIn it"}, "implicit preference",
     "Q?\n", ("It is", "In it"), (0, 1), (), {}),
    ({"conversations": sharegpt(("human", "q")), "chosen": {"from": "gpt", "value": "c"},
      "rejected": {"from": "gpt", "value": "r"}}, "sharegpt preference", (user("q"),), ("c", "r"), (0, 1), (), {}),
    ({"instruction": "i", "input": "x", "output": "o", "chosen": "c", "rejected": "r"}, "alpaca preference",
     (user("i\n\nx"),), ("c", "r"), (0, 1), (), {"output": "o"}),
    ({"instruction": "i", "chosen": "c", "rejected": "r"}, "instruction preference",
     (user("i"),), ("c", "r"), (0, 1), (), {}),
    ({"prompt": "p", "completions": ["a", "b", "c"], "ranks": [3, 1, 3]}, "N-way ranked",
     "p", ("a", "b", "c"), (1, 0, 1), (), {}),
    ({"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.5, 2, 0.5], "id": 7}, "N-way scored",
     "p", ("a", "b", "c"), (1, 0, 1), (0.5, 2.0, 0.5), {"id": 7}),
    ({"prompt": [user("p")], "completions": [[user("p"), says("a")], [says("b")]], "ranks": [0, 1]}, "N-way ranked",
     (user("p"),), ("a", "b"), (0, 1), (), {}),
    ({"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 3, "score_B": 8}, "SHP",
     (user("h"),), ("b", "a"), (0, 1), (8.0, 3.0), {}),
    ({"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}, "SHP",
     (user("h"),), ("a", "b"), (0, 1), (), {}),
    ({"input": "i", "output_1": "a", "output_2": "b", "label": "2"}, "A/B", (user("i"),), ("b", "a"), (0, 1), (), {}),
    ({"question": {"full_text": "q"}, "answer_0": "a", "answer_1": "b", "score_0": -0.5, "score_1": 0.5},
     "WebGPT comparisons", (user("q"),), ("a", "b"), (1, 0), (-0.5, 0.5), {}),
    ({"info": {"subreddit": "s", "title": "t", "post": "long"},
      "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1},
     "summary comparisons", "SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: long\n\nTL;DR:", ("b", "a"), (0, 1), (), {}),
    (RATED, "ultrafeedback", (user("i"),), ("fair", "good", "old"), (1, 0, 2), (3.0, 4.5, 2.0), {}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "shape", "prompt", "completions", "ranks", "scores", "columns"), RANKINGS)
def test_a_row_becomes_a_ranking(row, shape, prompt, completions, ranks, scores, columns):
    found = load_rankings([row])
    assert found.rankings == [Ranking(prompt, completions, ranks, scores, columns)]
    assert (found.shape, found.skipped) == (shape, {})


@pytest.mark.parametrize(("row", "shape", "prompt", "completions", "ranks", "scores", "columns"), RANKINGS)
def test_every_comparison_is_an_example_and_a_prompt_too(
    row, shape, prompt, completions, ranks, scores, columns, tmp_path
):
    best = completions[ranks.index(0)]
    [example] = load_examples([row], RowSettings(chat="on")).examples
    # Alpaca rows with a preference have an output of their own, which was written to be imitated.
    assert example.messages[-1] == says(row.get("output", best))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [found] = load_rows(PromptSettings(path=str(path), chat="on"))
    wanted = [user(prompt)] if isinstance(prompt, str) else list(prompt)
    assert found["prompt"] == wanted


def test_a_tree_gives_a_ranking_for_every_ranked_group():
    found = load_rankings([TREE])
    first, second = found.rankings
    assert first.prompt == (user("q"),) and first.completions == ("bad", "good") and first.ranks == (1, 0)
    assert second.prompt == (user("q"), says("good"), user("and then"))
    assert second.completions == ("later better", "later worse") and second.columns["depth"] == 1
    assert first.columns == {"message_tree_id": "t", "depth": 0}


def test_a_row_for_each_message_is_put_together_to_trees():
    rows = [
        {"message_id": "b", "parent_id": "a", "text": "good", "role": "assistant", "rank": 0},
        {"message_id": "x", "parent_id": "lost", "text": "?", "role": "assistant", "rank": 0},
        {"message_id": "a", "parent_id": None, "text": "q", "role": "prompter", "rank": None},
        {"message_id": "c", "parent_id": "a", "text": "bad", "role": "assistant", "rank": 1},
        {"message_id": "c", "parent_id": "a", "text": "twice", "role": "assistant", "rank": 2},
    ]
    found = load_rankings(rows)
    [ranking] = found.rankings
    assert ranking.prompt == (user("q"),) and ranking.completions == ("good", "bad")
    assert found.skipped == {
        "a message whose parent is not there": 1,
        "a message whose message_id another one has": 1,
    }
    assert any("first: row 2" in note for note in found.notes) and any("first: row 5" in note for note in found.notes)
    assert load_examples(rows).examples == [chat(user("q"), says("good"))]


def test_labels_make_rankings_where_a_prompt_has_both():
    rows = [
        {"prompt": "p", "completion": "bad", "label": False},
        {"prompt": "q", "completion": "alone", "label": True},
        {"prompt": "p", "completion": "good", "label": True},
        {"prompt": "p", "completion": "fine", "label": 1},
    ]
    found = load_rankings(rows)
    [ranking] = found.rankings
    assert (ranking.prompt, ranking.completions, ranking.ranks) == ("p", ("bad", "good", "fine"), (1, 0, 0))
    assert found.skipped == {"a prompt whose completions all have one label": 1}
    found = load_rankings([*rows, {**rows[0], "completion": None}, {**rows[0], "label": "maybe"}])
    assert found.rankings == [ranking], "a broken row costs its prompt nothing"
    assert found.skipped["no 'completion'"] == found.skipped["a label that is neither true nor false"] == 1
    examples = load_examples(rows)
    assert [example.completion for example in examples.examples] == ["alone", "good", "fine"]
    assert examples.skipped == {"a completion that is labelled as bad": 1}


def test_all_the_instances_of_a_task_are_examples():
    task = {
        "instruction": "i",
        "instances": [{"input": "x", "output": "1"}, {"input": "y", "output": ""}, {"output": "2"}],
    }
    found = load_examples([task])
    assert found.examples == [chat(user("i\n\nx"), says("1")), chat(user("i"), says("2"))]
    assert found.skipped == {"an empty output": 1}


def test_where_a_continuation_has_several_turns_it_stays_messages():
    row = {
        "chosen": f"{TRANSCRIPT} fine\n\nHuman: good\n\nAssistant: bye",
        "rejected": f"{TRANSCRIPT} fine\n\nHuman: so?\n\nAssistant: so!",
    }
    [ranking] = load_rankings([row]).rankings
    assert ranking.prompt == tuple(FIRST_TURNS), "the cut is where the assistant goes on in both"
    assert ranking.completions[0] == (says("fine"), user("good"), says("bye"))


@pytest.mark.parametrize(
    ("chat_setting", "row", "expected"),
    [
        ("on", {"prompt": "p", "completion": "c"}, chat(user("p"), says("c"))),
        ("auto", {"prompt": "p", "completion": "c"}, CompletionExample("p", "c")),
        ("off", {"prompt": "p", "completion": "c"}, CompletionExample("p", "c")),
        ("off", {"instruction": "i", "output": "o"}, CompletionExample("i", "o")),
        ("off", {"messages": [user("p"), says("c")]}, CompletionExample("p", "c")),
    ],
)
def test_chat_says_what_becomes_messages(chat_setting, row, expected):
    assert load_examples([row], RowSettings(chat=chat_setting)).examples == [expected]


def test_without_chat_only_single_questions_are_text():
    rows = [{"messages": [user("p"), says("c")]}, {"messages": [*FIRST_TURNS, says("fine")]}]
    found = load_examples(rows, RowSettings(chat="off"))
    assert len(found) == 1 and list(found.skipped.values()) == [1] and "chat = off" in next(iter(found.skipped))
    assert (
        load_rankings([{"instruction": "i", "chosen": "c", "rejected": "r"}], RowSettings(chat="off"))
        .rankings[0]
        .prompt
        == "i"
    )


def test_rows_without_an_answer_or_an_order_are_refused_with_advice():
    with pytest.raises(DataError, match=r"of the shape text and give no answer to imitate; lmrl pretrain reads"):
        load_examples([{"text": "t"}])
    with pytest.raises(DataError, match=r"of the shape prompt and completion and give no order .* lmrl sft"):
        load_rankings([{"prompt": "p", "completion": "c"}])
    with pytest.raises(DataError, match=r"of the shape prompt and give no answer .* lmrl rl"):
        load_examples([{"prompt": "p"}])
    with pytest.raises(DataError, match=r"of the shape stepwise"):
        load_rankings([{"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}])


def test_an_unknown_shape_names_the_nearest():
    with pytest.raises(DataError) as caught:
        load_rankings([{"prompt": "p", "choosen": "c", "rejected": "r"}])
    message = str(caught.value)
    assert "choosen, prompt, rejected" in message and "Nearest: preference, which also needs 'chosen'" in message
    with pytest.raises(DataError, match=r"Nearest: alpaca, which also needs 'output'"):
        load_examples([{"instruction": "i", "outputs": "o"}])


def test_the_documents_python_runs(root):
    page = (root / "docs" / "datasets.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert blocks
    for body in blocks:
        exec(compile(body, "docs/datasets.md", "exec"), {})


def test_the_documented_table_is_the_table(root):
    from lmrl.data.layouts.shapes import SHAPES

    page = (root / "docs" / "datasets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|\n]+) " + r"\|([^|\n]+)" * 4 + r"\|$", page, re.MULTILINE)
    documented = {name: cells for name, *cells in rows if name != "shape"}
    assert list(documented) == [shape.name for shape in SHAPES], "in the order in which they are tried"
    for shape in SHAPES:
        columns, example, ranking, prompt = documented[shape.name]
        assert all(name.partition(".")[0] in columns for name in shape.columns)
        if not shape.advice and not shape.name.startswith("prompt and"):
            filled = [bool(cell.strip()) for cell in (example, ranking, prompt)]
            assert filled == [shape.serves(use) for use in ("examples", "rankings", "prompts")], shape.name
