"""The embedded world as files: text to pretrain on, conversations to fine-tune on, requests to sample from.

They are what a user would bring, so that every stage reads the story world as it reads anything else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmrl.stories.grammar import Split, Story, generator_of, story
from lmrl.stories.prompts import question, request

QUESTION_SHARE = 0.35
REQUEST_SHARE = 0.05
"""Documents in which some request precedes an unrelated story: its words become known, and not what it asks for."""


def documents(seed: int, count: int, split: Split = "train") -> Iterator[str]:
    """Yield texts to pretrain on: stories, some with a question and its answer, some behind a request."""
    generator = generator_of(seed, f"documents/{split}")
    for _ in range(count):
        told = story(generator, split)
        kind = generator.random()
        if kind < QUESTION_SHARE:
            asked = question(told, generator)
            yield f"{asked['prompt']} {asked['answer']}."
        elif kind < QUESTION_SHARE + REQUEST_SHARE:
            yield f"{request(story(generator, split))['prompt']} {told.text}"
        else:
            yield told.text


def conversations(
    seed: int, count: int, split: Split = "train", question_share: float = 0.3
) -> Iterator[dict[str, Any]]:
    """Yield rows of ``messages``: a request and the story that answers it, or a story, a question and its answer."""
    generator = generator_of(seed, f"conversations/{split}")
    for _ in range(count):
        told = story(generator, split)
        asked, answer = _exchange(told, generator, question_share)
        yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def _exchange(told: Story, generator: random.Random, question_share: float) -> tuple[str, str]:
    if generator.random() >= question_share:
        row = request(told)
        return row["prompt"], row["answer"]
    row = question(told, generator)
    return row["prompt"].removesuffix(" Answer:"), f"{row['answer']}."


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines, under the final name only when complete; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)
    return path
