"""Prompts as an environment needs them: text, token ids, and the columns that its reward reads.

Leaves out files and hub data sets (``lmrl.data`` reads those into rows that are accepted here).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmrl.errors import DataError, PromptError, nearest
from lmrl.models.card import ModelCard
from lmrl.models.chat_template import prompt_ids
from lmrl.models.encoding import text_ids
from lmrl.models.turns import holds_turns

PROMPT_COLUMN = "prompt"


@dataclass(frozen=True)
class Prompt:
    """One prompt: its text, its token ids, and further columns by name; ``in_turns`` if it is a conversation."""

    text: str
    ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    in_turns: bool = False


def read_prompts(rows: Iterable[Any], card: ModelCard) -> tuple[Prompt, ...]:
    """Return the prompts of ``rows``: strings, chat messages, token ids, or mappings with a ``prompt`` and columns.

    Raises ``PromptError`` for no prompts, an empty one, one that fills the context, ids outside the vocabulary, and
    rows whose columns differ.
    """
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise PromptError(
            f"prompts is one {type(rows).__name__}; expected a list of strings, of token id rows, or of mappings with "
            f"a {PROMPT_COLUMN!r}. Put it in a list."
        )
    prompts = tuple(read_prompt(row, card, f"prompt {number}") for number, row in enumerate(rows))
    if not prompts:
        raise PromptError("the list of prompts is empty; expected at least one prompt")
    names = set(prompts[0].columns)
    for number, prompt in enumerate(prompts):
        if set(prompt.columns) != names:
            raise PromptError(
                f"prompt {number} has the columns {sorted(prompt.columns)}, prompt 0 has {sorted(names)}; "
                "expected the same columns in every row"
            )
    return prompts


def read_prompt(row: Any, card: ModelCard, where: str) -> Prompt:
    """Return one prompt; ``where`` names it in errors."""
    columns: dict[str, Any] = {}
    if isinstance(row, Mapping):
        columns = {str(name): value for name, value in row.items() if name != PROMPT_COLUMN}
        if PROMPT_COLUMN not in row:
            guess = nearest(PROMPT_COLUMN, columns)
            raise PromptError(
                f"{where} has no {PROMPT_COLUMN!r} column; found {sorted(columns)}"
                + (f". Did you mean {guess!r}?" if guess else "")
            )
        row = row[PROMPT_COLUMN]
    messages = is_conversation(row)
    if messages:
        text, found = _rendered(row, card, where)
        ids = tuple(found)
        columns["prompt_messages"] = [dict(message) for message in row]
    elif isinstance(row, str):
        text, ids = row, tuple(text_ids(card.codec, row))
    else:
        ids = _checked_ids(row, card, where)
        text = card.codec.decode_batch([ids])[0]
    if not ids:
        raise PromptError(f"{where} has no tokens; expected at least one (a BOS token counts)")
    if max(ids) >= card.vocab_size:
        raise PromptError(f"{where}: token id {max(ids)} lies outside the model's vocabulary of {card.vocab_size}")
    if len(ids) >= card.context_length:
        raise PromptError(
            f"{where} has {len(ids)} tokens and leaves no room in the context of {card.context_length}; shorten it"
        )
    return Prompt(text, ids, columns, messages or holds_turns(card, [ids]))


def is_conversation(row: Any) -> bool:
    """Return whether a prompt is a list of chat messages."""
    return isinstance(row, Sequence) and not isinstance(row, str) and bool(row) and isinstance(row[0], Mapping)


def _rendered(messages: Sequence[Mapping[str, Any]], card: ModelCard, where: str) -> tuple[str, list[int]]:
    try:
        return prompt_ids(card.codec, messages)
    except DataError as error:
        raise PromptError(f"{where}: {error}") from error


def _checked_ids(row: Any, card: ModelCard, where: str) -> tuple[int, ...]:
    if not isinstance(row, Sequence | np.ndarray) or isinstance(row, bytes):
        raise PromptError(f"{where} is a {type(row).__name__}; expected a string, token ids, or a mapping")
    ids = []
    for token in row:
        if isinstance(token, bool | np.bool_) or not isinstance(token, int | np.integer):
            raise PromptError(
                f"{where} holds {token!r} ({type(token).__name__}) among its token ids; expected integers"
            )
        if not 0 <= token < card.vocab_size:
            raise PromptError(f"{where}: token id {token} is out of range; expected 0 to {card.vocab_size - 1}")
        ids.append(int(token))
    return tuple(ids)
