"""Parts that the readers of every shape share: an answered prompt, a row left out with its reason, checks of cells."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lmrl.data.records import Answer, Prompt, dense_ranks

SURROGATES = re.compile("[\ud800-\udfff]")
"""Half characters: JSON can hold one half of a surrogate pair, UTF-8 and tokenizers cannot."""


class Skip(Exception):
    """A row, or a part of one, that is left out: ``reason`` is counted, ``detail`` told of the first such row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Answered:
    """A prompt with its answers as a row has them; one answer where nothing is compared.

    ``ranks`` are dense and 0 is best; ``used`` names the columns that are in here, and ``columns`` adds what a reader
    found beside the row's own.
    """

    prompt: Prompt
    completions: tuple[Answer, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] = ()
    used: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


Found: TypeAlias = Iterable[Answered | Skip]
Reader: TypeAlias = Callable[[Mapping[str, Any]], Found]
"""Reads one row. It raises ``Skip`` for the whole row, or yields it for a part."""


def refuse_half_characters(*texts: Prompt | Answer) -> None:
    """Raise ``Skip`` where a text holds half of a surrogate pair: it was cut in the middle of an emoji, say."""
    for found in texts:
        for text in (found,) if isinstance(found, str) else (message["content"] for message in found):
            if not text.isascii() and SURROGATES.search(text):
                raise Skip("half a character, which no tokenizer reads (one half of a surrogate pair)")


def native(value: Any) -> Any:
    """Return what numpy, pandas and torch hold as Python's own lists and numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def structured(value: Any) -> Any:
    """Return a list or object, also out of a text cell: JSON, or Python's notation, which pandas writes into CSV."""
    value = native(value)
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list | dict) else value
    return value


def is_missing(value: object) -> bool:
    """Return whether a cell holds nothing: None, NaN (how pandas and some JSON files say so), or an empty text."""
    value = native(value)
    return value is None or value != value or (isinstance(value, str | list | dict) and not value)


def cell(row: Mapping[str, Any], name: str) -> Any:
    """Return what the row has under this name. Raises ``Skip`` where it has nothing."""
    value = native(row.get(name))
    if value is None or value != value:
        raise Skip(f"no {name!r}")
    return value


def text_of(value: object, what: str) -> str:
    """Return a text. Raises ``Skip`` for anything else."""
    if value is None:
        raise Skip(f"no {what}")
    if not isinstance(value, str):
        raise Skip(f"{what}: not text", f"a {type(value).__name__}")
    return value


def filled(value: object, what: str) -> str:
    """Return a text that says something. Raises ``Skip`` for anything else."""
    text = text_of(value, what)
    if not text.strip():
        raise Skip(f"an empty {what}")
    return text


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """Return the text of a column that may be absent, None or empty. Raises ``Skip`` for anything but text."""
    value = row.get(name)
    return "" if is_missing(value) else text_of(value, name)


def list_of(value: object, what: str) -> Sequence[Any]:
    """Return a list. Raises ``Skip`` for anything else."""
    value = structured(value)
    if value is None:
        raise Skip(f"no {what}")
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise Skip(f"{what}: not a list", f"a {type(value).__name__}")
    return value


def number(value: object) -> float | None:
    """Return a finite number (also out of a CSV cell), or None for anything else."""
    value = native(value)
    if not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(values: Sequence[object], what: str) -> tuple[float, ...]:
    """Return finite numbers. Raises ``Skip`` when one is not."""
    found = tuple(number(value) for value in values)
    for value, given in zip(found, values, strict=True):
        if value is None:
            raise Skip(f"{what}: not finite numbers", repr(given)[:40])
    return tuple(value for value in found if value is not None)


def two(
    prompt: Prompt,
    better: Answer,
    worse: Answer,
    scores: Sequence[object] = (),
    used: tuple[str, ...] = (),
    columns: Mapping[str, Any] | None = None,
) -> Answered:
    """Return a pair, better first, with the scores of the two where both are numbers and agree that it is better."""
    found = [number(value) for value in scores]
    kept: tuple[float, ...] = ()
    note = ""
    if len(found) == 2 and found[0] is not None and found[1] is not None:
        kept = (found[0], found[1])
        if dense_ranks(kept, "highest") != (0, 1):
            kept, note = (), "scores that do not put the chosen answer first were left out"
    return Answered(prompt, (better, worse), (0, 1), kept, used, columns or {}, note)
