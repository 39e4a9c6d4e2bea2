"""Which columns hold the prompt: the shapes of prompt rows that lmrl recognises.

Each shape is known by the columns that it cannot do without. Leaves out files (``lmrl.data.files``) and shapes without
a prompt of their own (plain text, implicit-prompt preferences, conversation trees).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from lmrl.errors import DataError


@dataclass(frozen=True)
class Shape:
    """A kind of row: how it is known, how its prompt is read, and which column holds the answer to check against."""

    name: str
    columns: tuple[str, ...]
    """Rows of this shape have at least these columns."""
    prompt: Callable[[Mapping[str, Any]], object]
    answer: str = ""
    """The column that is also handed on as ``answer``, when the rows have no ``answer`` of their own."""


def _column(name: str) -> Callable[[Mapping[str, Any]], object]:
    return lambda row: row[name]


def _instruction(row: Mapping[str, Any]) -> object:
    instruction, extra = row["instruction"], row.get("input")
    return f"{instruction}\n\n{extra}" if isinstance(instruction, str) and extra else instruction


SHAPES = (
    Shape("preference", ("prompt", "chosen", "rejected"), _column("prompt")),
    Shape("prompt and completion", ("prompt", "completion"), _column("prompt")),
    Shape("prompt", ("prompt",), _column("prompt")),
    Shape("prompt ids", ("prompt_ids",), lambda row: row.get("prompt", "")),
    Shape("alpaca", ("instruction", "output"), _instruction, answer="output"),
    Shape("ultrafeedback", ("instruction", "completions"), _column("instruction")),
    Shape("question and answer", ("question", "answer"), _column("question")),
    Shape("input and target", ("input", "target"), _column("input"), answer="target"),
)
"""The shapes, the more particular ones first."""


def find_shape(columns: Collection[str]) -> Shape | None:
    """Return the first shape whose columns are all there."""
    return next((shape for shape in SHAPES if set(shape.columns) <= set(columns)), None)


def recognise(columns: Collection[str], where: str) -> Shape:
    """Return the shape of rows with these columns.

    Raises ``DataError`` with the columns found, the shapes known and the nearest of them when none fits.
    """
    shape = find_shape(columns)
    if shape is not None:
        return shape
    closest = max(SHAPES, key=lambda candidate: _likeness(candidate, columns))
    missing = ", ".join(repr(name) for name in closest.columns if name not in columns)
    known = "; ".join(f"{candidate.name} ({', '.join(candidate.columns)})" for candidate in SHAPES)
    raise DataError(
        f"{where}: no known shape of prompts. Found the columns: {', '.join(sorted(columns)) or '(none)'}. "
        f"Known shapes: {known}. Nearest: {closest.name}, which also needs {missing}. "
        'Or say where the prompt is: column = "name", or template = "Q: {name}\\nA:".'
    )


def _likeness(shape: Shape, columns: Collection[str]) -> float:
    best = (
        max((SequenceMatcher(None, name, found).ratio() for found in columns), default=0.0) for name in shape.columns
    )
    return sum(best) / len(shape.columns)
