"""Demonstrations: answers to imitate, conversations that end with one, and raw text."""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

from lmrl.data.examples import load_examples
from lmrl.data.layouts.shapes import column_sets, find_shape
from lmrl.data.loading.sources import open_rows
from lmrl.data.notes import log_notes
from lmrl.data.records import Answer, ChatExample, Prompt
from lmrl.errors import DataError
from lmrl.stages.rl.config import LearningData
from lmrl.text.card import ModelCard
from lmrl.text.encoding import text_ids

logger = logging.getLogger(__name__)

RAW: Prompt = ""
"""The prompt of a raw text."""


Record: TypeAlias = tuple[Prompt, tuple[Answer, ...], tuple[float, ...]]


def load_demonstrations(settings: LearningData, source: Any) -> list[Record]:
    """Return (prompt, the answer alone, its reward, which nobody reads) of each row.

    Rows of a ``text``, or of a ``prompt`` and nothing else, as in a text file, are raw texts; every other shape is read
    as fine-tuning reads it. Of a conversation the last message is the answer.
    """
    opened = open_rows(source, settings, "demonstrations")
    if find_shape(column_sets(opened.rows), "examples") is None:
        texts = [row.get("text", row.get("prompt")) for row in opened.rows]
        if all(isinstance(text, str) for text in texts):
            found = [text for text in texts if text.strip()][: settings.limit or None]
            return [(RAW, (text,), (0.0,)) for text in found]
    examples = load_examples(source, settings)
    log_notes(logger, examples.notes)
    records: list[Record] = []
    for example in examples.examples:
        if isinstance(example, ChatExample):
            *asked, last = example.messages
            records.append((tuple(asked), (str(last.get("content") or ""),), (0.0,)))
        else:
            records.append((example.prompt, (example.completion,), (0.0,)))
    return records


def raw_row(card: ModelCard, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first token of a raw text, which no token predicts, and the others, as far as the context goes."""
    ids = text_ids(card.codec, text)[: card.context_length]
    if len(ids) < 2:
        raise DataError("a text of fewer than two tokens; expected one to predict and one before it.")
    return tuple(ids[:1]), tuple(ids[1:])
