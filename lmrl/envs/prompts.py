"""Prompts as an environment needs them: text, token ids, and the columns that its reward reads.

Texts, token ids and rows with a ``prompt`` are read here; files, tables, messages and rows of other shapes by
``lmrl.data``, as the RL stage reads them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmrl.errors import DataError, PromptError, nearest
from lmrl.text.card import ModelCard
from lmrl.text.encoding import text_ids
from lmrl.text.turns import holds_turns

logger = logging.getLogger(__name__)
PROMPT_COLUMN = "prompt"
MESSAGES = "prompt_messages"
"""Column that keeps a conversation for the reward."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Prompt:
    """One prompt: its text, its token ids, and further columns by name; ``in_turns`` if it is a conversation."""

    text: str
    ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    in_turns: bool = False


def read_prompts(rows: Any, card: ModelCard, columns: Mapping[str, Any] | None = None) -> tuple[Prompt, ...]:
    """Return the prompts of ``rows``: strings, chat messages, token ids, mappings, a path, or a table.

    ``columns`` maps names, ours = theirs. Raises ``PromptError`` for no prompts, an empty one, one that fills the
    context, ids outside the vocabulary, and rows whose columns differ; ``DataError`` for data that cannot be read.
    """
    if _names_data(rows):
        return _loaded(rows, card, columns)
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise PromptError(
            f"prompts is one {type(rows).__name__}; expected a list of strings, of token id rows, or of mappings with "
            f"a {PROMPT_COLUMN!r}; a path or a table. Put one prompt in a list."
        )
    items = list(rows)
    if columns or any(map(_needs_reading, items)):
        return _loaded(items, card, columns)
    _check_columns([item for item in items if isinstance(item, Mapping)])
    prompts = tuple(read_prompt(row, card, f"prompt {number}") for number, row in enumerate(items))
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
    if _needs_reading(row):
        return _loaded([row], card, None)[0]
    columns: dict[str, Any] = {}
    if isinstance(row, Mapping):
        columns = {str(name): value for name, value in row.items() if name != PROMPT_COLUMN}
        row = row[PROMPT_COLUMN]
    if isinstance(row, str):
        return _checked(row, text_ids(card.codec, row), columns, card, where)
    ids = _checked_ids(row, card, where)
    return _checked(card.codec.decode_batch([ids])[0], ids, columns, card, where)


def _names_data(rows: Any) -> bool:
    """Return whether ``rows`` is a table, or a text that names data rather than being a prompt."""
    from lmrl.data.loading.compressed import kind_of
    from lmrl.data.loading.files import READERS
    from lmrl.data.loading.shards import is_glob
    from lmrl.data.loading.sources import is_table

    if not isinstance(rows, str):
        return is_table(rows)
    path = Path(rows).expanduser()
    return bool(path.exists() or kind_of(path) in READERS or is_glob(rows) or HUB_ID.fullmatch(rows))


def _needs_reading(row: Any) -> bool:
    """Return whether a row is a conversation, or of another shape than a prompt with columns."""
    from lmrl.data.layouts.conversations import looks_like_messages
    from lmrl.data.layouts.mapping import ALIASES

    if not isinstance(row, Mapping):
        return isinstance(row, list | tuple) and bool(row) and isinstance(row[0], Mapping)
    spoken = {"chat_template_kwargs", *ALIASES, *(name for names in ALIASES.values() for name in names)}
    prompt = row.get(PROMPT_COLUMN)
    if any(row.get(name) for name in spoken):
        return True
    return PROMPT_COLUMN not in row or (bool(prompt) and looks_like_messages(prompt))


def _check_columns(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows that mean nothing without a column that is not read, and log the columns that only rewards get."""
    from lmrl.data.layouts.columns import SETTING, SHOWN_TO_REWARDS
    from lmrl.data.layouts.parts import media_of
    from lmrl.data.layouts.unmapped import ANSWERS, refuse_unmapped, unused_columns
    from lmrl.data.notes import log_notes

    where, used = "the list of prompts", {PROMPT_COLUMN, *ANSWERS}
    try:
        refuse_unmapped(rows, used, where, SETTING, False, PROMPT_COLUMN)
    except DataError as error:
        raise PromptError(_in_keywords(str(error))) from error
    for number, row in enumerate(rows):
        media = media_of(row)
        if media:
            raise PromptError(
                f"prompt {number} has the column {media!r}; expected text alone. Leave it or the row out."
            )
    log_notes(logger, map(_in_keywords, unused_columns(rows, used, where, SETTING, SHOWN_TO_REWARDS)))


def _in_keywords(text: str) -> str:
    """Return a message about the settings of a file with the keyword of the environment in their place."""
    from lmrl.data.layouts.columns import ADVICE, SETTING

    return text.replace(f" {ADVICE}", "").replace(f"{SETTING}.columns", "columns")


def _loaded(source: Any, card: ModelCard, columns: Mapping[str, Any] | None) -> tuple[Prompt, ...]:
    from lmrl.data import PromptSettings, load_prompts
    from lmrl.data.notes import log_notes

    try:
        found = load_prompts(source, PromptSettings(columns=dict(columns or {})), card.codec)
    except DataError as error:
        if not isinstance(source, list):
            raise
        first = source[0] if source and isinstance(source[0], Mapping) else {PROMPT_COLUMN: ""}
        guess = "" if columns or PROMPT_COLUMN in first else nearest(PROMPT_COLUMN, map(str, first))
        hint = f"prompt 0 has no {PROMPT_COLUMN!r} column. Did you mean {guess!r}? " if guess else ""
        raise PromptError(f"{hint}{_in_keywords(str(error))}") from error
    log_notes(logger, map(_in_keywords, found.notes))
    rows = found.prompt_ids or [text_ids(card.codec, text) for text in found.prompts]
    return tuple(
        _checked(text, ids, {name: values[place] for name, values in found.columns.items()}, card, f"prompt {place}")
        for place, (text, ids) in enumerate(zip(found.prompts, rows, strict=True))
    )


def _checked(text: str, ids: Sequence[int], columns: Mapping[str, Any], card: ModelCard, where: str) -> Prompt:
    if not ids:
        raise PromptError(f"{where} has no tokens; expected at least one (a BOS token counts)")
    if max(ids) >= card.vocab_size:
        raise PromptError(f"{where}: token id {max(ids)} lies outside the model's vocabulary of {card.vocab_size}")
    if len(ids) >= card.context_length:
        raise PromptError(
            f"{where} has {len(ids)} tokens and leaves no room in the context of {card.context_length}; shorten it"
        )
    return Prompt(text, tuple(ids), columns, MESSAGES in columns or holds_turns(card, [ids]))


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
