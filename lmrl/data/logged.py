"""Answers that somebody logged, each with a number of its own: a label, or the reward that it got.

Rows of any shape with one answer and a ``label`` (good or bad) or ``reward`` beside it; rankings of any shape give one
answer per completion, by its rank or its score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from lmrl.data.layouts.readers import is_good
from lmrl.data.layouts.reading import Answered, Skip, cell, number, refuse_half_characters
from lmrl.data.layouts.rows import Reading, RowSettings, Tally, as_asked
from lmrl.data.layouts.shapes import Shape, column_sets, find_shape
from lmrl.data.loading.sources import Opened, Source, open_rows
from lmrl.data.rankings import load_rankings
from lmrl.data.records import Answer, Prompt
from lmrl.errors import DataError

Number: TypeAlias = Literal["label", "reward"]


@dataclass(frozen=True)
class LoggedAnswer:
    """One answer: ``reward`` is what it got, or 1 for a good and 0 for a bad label."""

    prompt: Prompt
    completion: Answer
    reward: float


@dataclass(frozen=True)
class LoggedSet:
    """Answers, with what was left out by reason and the same in sentences."""

    answers: list[LoggedAnswer]
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.answers)


def load_logged(number_of: Number, source: Source | None = None, settings: RowSettings | None = None) -> LoggedSet:
    """Read answers with a ``label`` or a ``reward`` from a file, a list of rows, a saved folder or the hub.

    Of a ranking the best answers (rank 0) are good and the others bad; their rewards are its scores. Raises
    ``DataError`` when the rows cannot be read, or none is left.
    """
    settings = settings or RowSettings()
    opened = open_rows(source, settings, "answers")
    shape = _shape(number_of, opened)
    if shape is None:
        return _from_rankings(number_of, opened, settings)
    reading = Reading(opened, shape, "logged", number_of)
    tally, answers = Tally(opened.where), []
    for place, row in enumerate(opened.rows, start=1):
        try:
            answers += [_read(number_of, row, found, settings, shape) for found in _answered(reading, row)]
        except Skip as skip:
            tally.skip(skip, place)
            continue
        if len(answers) == settings.limit:
            break
    count = len(opened.rows)
    if not answers:
        raise DataError(f"{opened.where}: no answers with a {number_of} are left of {count} rows. {tally.reasons()}")
    taken = f"{opened.where}: {len(answers)} answers of {count} rows"
    return LoggedSet(answers, tally.skipped, (taken, *opened.notes, *reading.notes(), *tally.notes()))


def _shape(number_of: Number, opened: Opened) -> Shape | None:
    """Return the shape of rows with one answer and a number; None where they are rankings."""
    columns = column_sets(opened.rows)
    if not any(number_of in found for found in columns):
        return None
    shape = find_shape(columns, "examples")
    return shape if shape is not None and (shape.ranking is None or shape.name == "labelled") else None


def _answered(reading: Reading, row: Mapping[str, Any]) -> Iterator[Answered]:
    assert reading.shape.example is not None, "the shape was found for examples"
    for found in reading.shape.example(row):
        if isinstance(found, Skip):
            raise found
        yield reading.complete(found, row)


def _read(
    number_of: Number, row: Mapping[str, Any], found: Answered, settings: RowSettings, shape: Shape
) -> LoggedAnswer:
    prompt, (completion,) = as_asked(found, settings.chat, shape)
    refuse_half_characters(prompt, completion)
    value = float(is_good(row)) if number_of == "label" else number(cell(row, "reward"))
    if value is None:
        raise Skip("a reward that is no finite number", repr(row.get("reward"))[:40])
    return LoggedAnswer(prompt, completion, value)


def _from_rankings(number_of: Number, opened: Opened, settings: RowSettings) -> LoggedSet:
    where, rows = opened.where, opened.rows
    try:
        found = load_rankings(rows, replace(settings, columns={}))
    except DataError as error:
        raise DataError(
            f"{where}: expected rows with prompt, completion and {number_of}, or "
            f"{'scored ' if number_of == 'reward' else ''}rankings; found the columns "
            f"{', '.join(sorted(rows[0]))}. {error}"
        ) from error
    answers = []
    for ranking in found.rankings:
        if number_of == "reward" and not ranking.scores:
            raise DataError(f"{where}: a ranking without scores; expected a score, the reward, for each answer.")
        numbers = ranking.scores if number_of == "reward" else [float(rank == 0) for rank in ranking.ranks]
        answers += [
            LoggedAnswer(ranking.prompt, completion, value)
            for completion, value in zip(ranking.completions, numbers, strict=True)
        ]
    return LoggedSet(answers, found.skipped, (*opened.notes, *found.notes))
