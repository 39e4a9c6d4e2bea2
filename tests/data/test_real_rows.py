"""Examples and rankings out of the real files, counted exactly, where they are at hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lmrl.data import ChatExample, PromptSettings, RowSettings, load_examples, load_rankings, load_rows

HH = "data/preference/hh_harmless_base_test.jsonl.gz"
TREES = "data/preference/oasst_en_100_tree.jsonl"


def test_hh_pairs(shared: Path):
    found = load_rankings(shared / HH)
    assert len(found) == 2308 and found.skipped == {"a best answer that is empty": 4}, "2312 pairs"
    assert found.shape == "implicit preference"
    assert all(ranking.ranks == (0, 1) and not ranking.columns for ranking in found.rankings)
    several = [item for item in found.rankings if any(not isinstance(text, str) for text in item.completions)]
    assert len(several) == 5, "five pairs part before the last turn of the assistant"
    with gzip.open(shared / HH, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    odd = [
        row
        for row in rows
        if row["chosen"].rpartition("\n\nAssistant:")[0] != row["rejected"].rpartition("\n\nAssistant:")[0]
    ]
    assert len(odd) == 5
    for ranking, row in zip(several, odd, strict=True):
        assert ranking.prompt[-1]["role"] == "user"
        for completion, side in zip(ranking.completions, ("chosen", "rejected"), strict=True):
            said = [completion] if isinstance(completion, str) else [item["content"] for item in completion]
            turns = row[side].split("\n\nAssistant:")
            assert [text.strip() for text in turns[-len(said) :]] == said


def test_hh_pairs_can_be_written_back(shared: Path):
    found = load_rankings(shared / HH, RowSettings(limit=300))
    with gzip.open(shared / HH, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if not row["chosen"].rstrip().endswith("\n\nAssistant:")]
    names = {"user": "Human", "assistant": "Assistant"}
    for ranking, row in zip(found.rankings, rows, strict=False):
        for completion, side in zip(ranking.completions, ("chosen", "rejected"), strict=True):
            said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
            written = "".join(f"\n\n{names[item['role']]}: {item['content']}" for item in [*ranking.prompt, *said])
            assert written.split() == row[side].split(), "nothing but space around turns is lost"


def test_hh_prompts_keep_the_answer(shared: Path):
    rows = load_rows(PromptSettings(path=str(shared / HH)))
    assert len(rows) == 2312, "a prompt needs no answer"
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)
    assert rows[0]["answer"].startswith("No, sorry!") and set(rows[0]) == {"prompt", "answer", "chosen", "rejected"}


def test_conversation_trees(shared: Path):
    found = load_rankings(shared / TREES)
    sizes = [len(ranking.completions) for ranking in found.rankings]
    assert len(found) == 212 and (min(sizes), max(sizes)) == (2, 9) and found.skipped == {}
    assert sum(sizes) == 641, "every ranked reply of the file"
    for ranking in found.rankings:
        assert isinstance(ranking.prompt, tuple) and ranking.prompt[-1]["role"] == "user"
        assert len(ranking.pairs()) == len(ranking.ranks) * (len(ranking.ranks) - 1) // 2, "no ties in this file"
    training, held_out = found.split(0.2, seed=1)
    trees = [{ranking.columns["message_tree_id"] for ranking in side.rankings} for side in (training, held_out)]
    assert not trees[0] & trees[1], "a later group contains the answers of an earlier one"
    assert 30 <= len(held_out) <= 42

    examples = load_examples(shared / TREES)
    assert len(examples) == 100
    assert all(isinstance(item, ChatExample) and item.messages[-1]["role"] == "assistant" for item in examples.examples)
    rows = load_rows(PromptSettings(path=str(shared / TREES)))
    assert len(rows) == 100 and all(row["answer"] for row in rows)


def test_instructions_with_preferences(shared: Path):
    path = shared / "data/preference/rasbt_instruction_preference.json"
    found = load_rankings(path)
    assert len(found) + sum(found.skipped.values()) == 1100 and set(found.skipped) == {"chosen equal to rejected"}
    rows = json.loads(path.read_text())
    assert found.skipped["chosen equal to rejected"] == sum(
        row["chosen"].strip() == row["rejected"].strip() for row in rows
    )
    assert found.rankings[0].columns == {"output": rows[0]["output"]}
    assert len(load_examples(path)) == 1100


@pytest.mark.parametrize(
    ("file", "count", "shape"),
    [
        ("sft/rasbt_instruction_data.json", 1100, "alpaca"),
        ("sft/self_instruct_seed_tasks.jsonl", 175, "seed tasks"),
        ("rl/gsm8k_test.jsonl", 1319, "question and answer"),
        ("rl/bbh_word_sorting.json", 250, "input and target"),
    ],
)
def test_examples_of_real_files(shared: Path, file, count, shape):
    found = load_examples(shared / "data" / file)
    assert (len(found), found.shape, found.skipped) == (count, shape, {})
    roles = {tuple(item["role"] for item in example.messages) for example in found.examples}
    assert roles == {("user", "assistant")}
    plain = load_examples(shared / "data" / file, RowSettings(chat="off"))
    assert [(item.prompt, item.completion) for item in plain.examples] == [
        (item.messages[0]["content"], item.messages[1]["content"]) for item in found.examples
    ]
