"""Columns that nothing reads: all are named in a note, and those that a row means nothing without are refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmrl.data.layouts.choices import bare, choices_of
from lmrl.data.layouts.conversations import is_text, is_transcript, looks_like_messages
from lmrl.data.layouts.mapping import PARTS
from lmrl.data.layouts.reading import Skip, is_missing, structured
from lmrl.errors import DataError

Row = Mapping[str, Any]
ANSWERS = ("answer", "completion", "output", "target", "solution", "response", "label", "answerKey")
"""Columns that may contain the letter or number of a choice; of prompts, rewards read them."""
NUMBERS_ROWS = re.compile(
    r"(?:.*[_ .-])?(?:id|idx|index|ind|row|line|no|offset|seed)|unnamed: \d+|__index_level_\d+__", re.IGNORECASE
)
"""Columns whose numbers say where a row comes from and nothing about what it means."""
SERIES = re.compile(r"(.*?)[ _-]?([A-Ha-h]|\d)")
"""Columns that hold one choice each: ``A``, ``option_b``, ``ending3``."""


def unused_columns(rows: Sequence[Row], used: Collection[str], where: str, setting: str, what: str) -> list[str]:
    """Return a note on the columns that have values and are not ``used``, with the number of rows of each.

    A number or a boolean may decide what a row means as well as a text: ``is_correct``, ``stars``, ``toxicity``.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(name for name, value in row.items() if name not in used and _matters(name, value))
    if not counts:
        return []
    names = ", ".join(f"{name!r} ({count} rows)" for name, count in counts.items())
    return [
        f"{where}: not {what}: {names}; {setting}.columns maps a column that matters, and {setting}.columns.unused "
        "names those that do not"
    ]


JUDGED = {"scores", "ranks", "gold_scores", "gold_ranks", "ratings"}
"""Columns with a number for each of several responses, which are no choices."""


def refuse_unmapped(
    rows: Sequence[Row], used: Collection[str], where: str, setting: str, implicit: bool, asked: str = ""
) -> None:
    """Raise ``DataError`` with the mapping to give where an unused column decides what the rows mean.

    ``implicit`` rows are pairs whose prompt is their common beginning; ``asked`` is the column of the prompt.
    """
    left = list(dict.fromkeys(name for row in rows for name in row if name not in used))
    if implicit:
        _refuse_question(rows, [name for name in left if name not in PARTS], where, setting)
    answer = next((name for name in ANSWERS if _mostly(rows, name, bare)), "")
    if not answer:
        return
    rows = [row for row in rows if bare(row.get(answer))]
    candidates = [name for name in left if name != answer and name not in JUDGED]
    held = next((name for name in candidates if 2 * sum(_chosen_of(row, name, answer) for row in rows) > len(rows)), "")
    if held and not all(_in_prompt(row, held, asked) for row in rows[:100]):
        _refuse_choices(where, setting, answer, f'"{held}"', [held])
    if not held and _mostly(rows, answer, lambda value: str(value).strip("().").isalpha()):
        series = _series(rows, candidates)
        if series and not all(str(row.get(name)) in str(row.get(asked)) for row in rows[:100] for name in series):
            _refuse_choices(where, setting, answer, "[" + ", ".join(f'"{name}"' for name in series) + "]", series)


def _refuse_choices(where: str, setting: str, answer: str, source: str, names: Sequence[str]) -> None:
    raise DataError(
        f"{where}: the answers in {answer!r} are letters or numbers of choices, which mean nothing without "
        f"{' and '.join(map(repr, names))}. Set {setting}.columns.choices = {source} to put the choices into the "
        f"prompt, or {setting}.columns.unused = {source} if the answers stand alone."
    )


def _refuse_question(rows: Sequence[Row], names: Sequence[str], where: str, setting: str) -> None:
    plain = [row for row in rows if isinstance(row.get("chosen"), str) and is_text(row["chosen"])]
    if not plain or all(is_transcript(row["chosen"]) for row in plain):
        return
    found = next((name for name in names if _mostly(plain, name, _is_prose)), "")
    if found:
        raise DataError(
            f"{where}: chosen and rejected come without a prompt, and {found!r} holds text. Set "
            f'{setting}.columns.prompt = "{found}" if it is the prompt, or {setting}.columns.unused = "{found}" if the '
            "prompt is the common beginning of chosen and rejected."
        )


def _mostly(rows: Sequence[Row], name: str, holds: Any) -> bool:
    values = [row[name] for row in rows if not is_missing(row.get(name))]
    return bool(values) and 2 * sum(1 for value in values if holds(value)) > len(values)


def _is_prose(value: object) -> bool:
    return isinstance(value, str) and len(value.split()) > 1


def _chosen_of(row: Row, name: str, answer: str) -> bool:
    """Return whether a row's answer is the letter or number of one of the texts in a column."""
    labels, texts = _choices(row.get(name))
    said = bare(row[answer])
    return bool(texts) and (said in labels or (said.isdigit() and int(said) <= len(texts)))


def _choices(value: object) -> tuple[list[str], list[str]]:
    if not isinstance(structured(value), list | dict) or looks_like_messages(value):
        return [], []
    try:
        labels, texts = choices_of(value)
    except Skip:
        return [], []
    return ([], []) if any(isinstance(structured(text), list | dict) for text in texts) else (labels, texts)


def _in_prompt(row: Row, name: str, asked: str) -> bool:
    return all(text in str(row.get(asked)) for text in _choices(row.get(name))[1])


def _series(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Return the columns that hold one choice each: two or more names that differ in their last letter or digit."""
    groups: dict[str, list[str]] = {}
    for name in names:
        found = SERIES.fullmatch(name)
        if found and _mostly(rows, name, lambda value: isinstance(value, str | int | float)):
            groups.setdefault(found[1], []).append(name)
    return max((group for group in groups.values() if len(group) > 1), key=len, default=[])


def _matters(name: str, value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return not is_missing(value) and not (is_number and NUMBERS_ROWS.fullmatch(name))
