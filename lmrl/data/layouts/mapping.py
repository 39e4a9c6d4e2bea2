"""``data.columns``: other names for the columns that lmrl reads, so that any layout becomes a known shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmrl.errors import DataError, SettingsError, unknown

Row = Mapping[str, Any]
UNUSED = "unused"
"""The target for columns that are left out on purpose: they are named in no note."""
MANY = ("completions", "choices", "preferences", "context", UNUSED)
"""Targets that several columns may form together, in this order."""
PARTS = ("system", "context", "choices", "tools", "chat_template_kwargs")
"""Columns that may accompany the prompt of any shape."""
OTHERS = ("reward", "history", "input", "gold_ranks", "gold_scores", "score_chosen", "score_rejected", "solution")
"""Further columns that a reader takes from a row."""
ALIASES = {
    "system": ("system_prompt", "system_message", "system_instruction"),
    "tools": ("functions",),
    "label": ("kto_tag",),
}
"""Names that are read without a mapping, because they can mean nothing else."""


def targets() -> list[str]:
    """Return the names that ``columns`` may map to: all columns of the known shapes, and what accompanies them."""
    from lmrl.data.layouts.shapes import SHAPES

    names = {name for shape in SHAPES for name in shape.columns if "." not in name}
    return sorted(names | {*PARTS, *OTHERS, UNUSED})


def map_columns(
    rows: Sequence[Row], columns: Mapping[str, Any], where: str, setting: str = "data"
) -> tuple[list[Row], list[str]]:
    """Return the rows with their columns renamed as ``columns`` says (ours = theirs), and notes.

    A list of columns becomes one list in every row. Raises ``SettingsError`` for a target that is not known, and
    ``DataError`` for a column that no row has; both name the nearest.
    """
    present = list(dict.fromkeys(name for row in rows for name in row))
    sources = {ours: _sources(ours, theirs, setting) for ours, theirs in columns.items()}
    for ours, names in sources.items():
        for name in names:
            if name not in present:
                raise DataError(f"{where}: {setting}.columns.{ours}: {unknown('column', name, present)}")
    taken = {name for names in sources.values() for name in names}
    notes = [
        f"{where}: {setting}.columns reads {' and '.join(names)} as {ours!r}; the column {ours!r} is not used"
        for ours, names in sources.items()
        if ours in present and ours not in taken and ours != UNUSED
    ]
    for ours, aliases in ALIASES.items():
        found = next((name for name in aliases if name in present and name not in taken), None)
        if found and ours not in present and ours not in sources:
            sources[ours] = [found]
            taken.add(found)
            notes.append(f"{where}: the column {found!r} is read as {ours!r}")
    if not sources:
        return list(rows), notes
    return [_renamed(row, sources, columns, taken) for row in rows], notes


def _sources(ours: str, theirs: Any, setting: str) -> list[str]:
    known = targets()
    if ours not in known:
        raise SettingsError(f"{setting}.columns: {unknown('column name', ours, known)}")
    names = [theirs] if isinstance(theirs, str) else theirs
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) and name for name in names):
        raise SettingsError(
            f"{setting}.columns.{ours} is {theirs!r}; expected the name of a column, or a list of names"
        )
    if len(names) > 1 and ours not in MANY:
        raise SettingsError(
            f"{setting}.columns.{ours} names {len(names)} columns; expected one. Several columns can form "
            f"{', '.join(MANY)}."
        )
    return list(names)


def _renamed(row: Row, sources: Mapping[str, list[str]], columns: Mapping[str, Any], taken: set[str]) -> Row:
    kept = {name: value for name, value in row.items() if name not in taken}
    for ours, names in sources.items():
        if ours == UNUSED:
            continue
        kept.pop(ours, None)
        if not any(name in row for name in names):
            continue
        if isinstance(columns.get(ours), str) or ours not in columns:
            kept[ours] = row[names[0]]
        else:
            kept[ours] = [row.get(name) for name in names]
    if isinstance(columns.get("completions"), Sequence) and not isinstance(columns["completions"], str):
        _number_verdicts(kept, sources["completions"])
    return kept


def _number_verdicts(row: dict[str, Any], names: Sequence[str]) -> None:
    """Replace a verdict that names a column of completions by that column's number."""
    places = {name: place for place, name in enumerate(names, start=1)}
    value = row.get("preferences")
    if isinstance(value, str):
        row["preferences"] = places.get(value, value)
    elif isinstance(value, list):
        row["preferences"] = [places.get(item, item) if isinstance(item, str) else item for item in value]
