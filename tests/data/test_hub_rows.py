"""Rows as the public sets have them, columns and all, written from their cards; the sets themselves need a network."""

from __future__ import annotations

import datasets
import pytest

from lmrl.data import RowSettings, load_examples, load_rankings

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]
ASPECT = {"Rating": "4", "Rationale": "because"}
SETS = {
    "Anthropic/hh-rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "trl-lib/ultrafeedback_binarized": {"chosen": TALK, "rejected": OTHER, "score_chosen": 8.0, "score_rejected": 6.0},
    "trl-lib/tldr": {"prompt": "POST: p\n\nTL;DR:", "completion": " a"},
    "trl-lib/tldr-preference": {"prompt": "POST: p\n\nTL;DR:", "chosen": " a", "rejected": " b"},
    "trl-lib/kto-mix-14k": {"prompt": TALK[:1], "completion": TALK[1:], "label": True},
    "trl-lib/Capybara": {"source": "s", "messages": TALK, "num_turns": 1},
    "trl-lib/lm-human-preferences-sentiment": {"prompt": "p", "chosen": " a", "rejected": " b"},
    "HuggingFaceH4/ultrafeedback_binarized": {
        "prompt": "q",
        "prompt_id": "1",
        "chosen": TALK,
        "rejected": OTHER,
        "messages": TALK,
        "score_chosen": 8.0,
        "score_rejected": 6.0,
    },
    "openbmb/UltraFeedback": {
        "source": "s",
        "instruction": "q",
        "models": ["x", "y"],
        "completions": [
            {
                "annotations": {"helpfulness": ASPECT, "honesty": {"Rating": rating, "Rationale": "so"}},
                "custom_system_prompt": "be",
                "model": "x",
                "principle": "p",
                "response": text,
                "overall_score": 7.0,
            }
            for text, rating in (("a", "5"), ("b", "N/A"))
        ],
        "correct_answers": ["None"],
    },
    "OpenAssistant/oasst1": [
        {
            "message_id": key,
            "parent_id": parent,
            "text": text,
            "role": role,
            "lang": "en",
            "deleted": False,
            "rank": rank,
            "message_tree_id": "m",
            "tree_state": "ready_for_export",
        }
        for key, parent, text, role, rank in (
            ("m", None, "q", "prompter", None),
            ("n", "m", "a", "assistant", 0),
            ("o", "m", "b", "assistant", 1),
        )
    ],
    "stanfordnlp/SHP": {
        "post_id": "1",
        "history": "q",
        "human_ref_A": "b",
        "human_ref_B": "a",
        "labels": 0,
        "score_A": 3,
        "score_B": 9,
    },
    "openai/gsm8k": {"question": "q", "answer": "a"},
    "databricks/databricks-dolly-15k": {"instruction": "q", "context": "", "response": "a", "category": "c"},
    "openai/summarize_from_feedback": {
        "info": {"id": "1", "post": "p", "title": "t", "subreddit": "s", "site": None, "article": None},
        "summaries": [{"text": " a", "policy": "x", "note": None}, {"text": " b", "policy": "y", "note": None}],
        "choice": 0,
        "worker": "w",
    },
    "openai/webgpt_comparisons": {
        "question": {"dataset": "d", "id": "1", "full_text": "q"},
        "answer_0": "a",
        "score_0": 1.0,
        "answer_1": "b",
        "score_1": -1.0,
    },
}
RANKED = set(SETS) - {"trl-lib/tldr", "trl-lib/kto-mix-14k", "trl-lib/Capybara", "openai/gsm8k"} - {
    "databricks/databricks-dolly-15k"
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """Serve these rows, as `datasets` types them, wherever a hub id is asked for."""
    asked = {}

    def load(name, subset, split, revision):
        asked.update(name=name, subset=subset, split=split, revision=revision)
        rows = SETS[name]
        return datasets.Dataset.from_list(rows if isinstance(rows, list) else [rows])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize("name", sorted(SETS))
def test_examples_of_public_sets(hub, name):
    settings = RowSettings(split="test", subset="main", revision="refs/convert/parquet")
    [example] = load_examples(name, settings).examples
    assert hub == {"name": name, "split": "test", "subset": "main", "revision": "refs/convert/parquet"}
    answer = example.messages[-1]["content"] if hasattr(example, "messages") else example.completion
    assert answer.strip() == "a"


@pytest.mark.parametrize("name", sorted(RANKED))
def test_rankings_of_public_sets(hub, name):
    [ranking] = load_rankings(name).rankings
    best, worst = (ranking.completions[ranking.ranks.index(rank)].strip() for rank in (0, 1))
    assert (best, worst) == ("a", "b")
    if isinstance(ranking.prompt, tuple):
        assert ranking.prompt == tuple(TALK[:1])
    if any("score" in column for column in SETS[name]):
        assert ranking.scores[ranking.ranks.index(0)] > ranking.scores[ranking.ranks.index(1)]
