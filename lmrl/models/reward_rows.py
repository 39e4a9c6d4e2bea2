"""Texts as the rows of ids that a reward model reads. Needs neither torch nor transformers."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

from lmrl.text.card import FastCodec, ModelCard, TransformersCodec
from lmrl.text.chat_template import PLAIN_TEMPLATE, response_row
from lmrl.text.conversation import is_prefilled
from lmrl.text.encoding import opening_ids

if TYPE_CHECKING:
    from lmrl.data.records import Answer, Prompt


def reward_row(card: ModelCard, prompt: Prompt, completion: Answer) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of its completion, as a reward model with this card reads them.

    They are those that fine-tuning trains on, closed by the template's end or EOS. A model that knows no EOS, an
    encoder, gets its tokenizer's own form for a pair of texts. Raises ``DataError`` for messages without a template.
    """
    if card.eos_ids:
        return response_row(card.codec, card.eos_ids, prompt, completion)
    if not isinstance(prompt, str):
        codec = card.codec
        prompt = codec.render_continued(prompt) if is_prefilled(prompt) else codec.render_chat(prompt, True)
    if not isinstance(completion, str):
        completion = "\n".join(message["content"] for message in completion)
    asked = card.codec.encode(prompt)
    pair = card.codec.encode_pair(prompt, completion)
    return pair[: len(asked)], pair[len(asked) :]


def text_row(card: ModelCard, text: str) -> list[int]:
    """Return the ids of a text in the tokenizer's own form, as transformers' pipelines read it."""
    return list(card.codec.encode(text))


def fitted_row(card: ModelCard, prompt: list[int], completion: list[int]) -> tuple[list[int], int]:
    """Return one row that fits the model's context, and how many tokens were left out to that end.

    They are left out at the beginning, because the score is read at the end; a BOS stays.
    """
    row = [*prompt, *completion]
    excess = len(row) - card.context_length
    if excess <= 0:
        return row, 0
    before = opening_ids(card.codec)  # [CLS] of an encoder
    bos = int(card.bos_id is not None and row[0] == card.bos_id)
    keep_first = len(before) if before and row[: len(before)] == before else bos
    return row[:keep_first] + row[keep_first + excess :], excess


def with_template(card: ModelCard) -> ModelCard:
    """Return a card whose tokenizer has a chat template: its own, or the plain one that needs no new tokens."""
    if card.codec.chat_template is not None:
        return card
    codec = copy.copy(card.codec)
    if isinstance(codec, TransformersCodec):
        codec.tokenizer = copy.deepcopy(codec.tokenizer)
        codec.tokenizer.chat_template = PLAIN_TEMPLATE
    elif isinstance(codec, FastCodec):
        codec.chat_template = PLAIN_TEMPLATE
    return dataclasses.replace(card, codec=codec)
