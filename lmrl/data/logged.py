"""Answers that somebody logged, each with a number of its own: a label, or the reward that it got.

Rows with ``prompt``, ``completion`` and ``label`` (good or bad) or ``reward``; rankings of any shape give one answer
per completion, by its rank or its score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from lmrl.data.files import read_rows
from lmrl.data.rankings import load_rankings
from lmrl.data.readers import is_good, read_answer, read_prompt
from lmrl.data.reading import Skip, cell, number, refuse_half_characters
from lmrl.data.records import Answer, Message, Prompt
from lmrl.data.rows import RowSettings, Source, Tally
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
    source = settings.path if source is None else source
    if isinstance(source, Sequence) and not isinstance(source, str):
        rows: Sequence[Mapping[str, Any]] = list(source)
        where = "the list of answers"
    else:
        rows, where = read_rows(source, settings.split, settings.subset, settings.revision), str(source)
    if not rows:
        raise DataError(f"{where} holds no rows; expected at least one.")
    if not {"prompt", "completion", number_of} <= set(rows[0]):
        return _from_rankings(number_of, rows, where, settings)
    tally, answers = Tally(where), []
    for place, row in enumerate(rows, start=1):
        try:
            answers.append(_read(number_of, row, settings))
        except Skip as skip:
            tally.skip(skip, place)
            continue
        if len(answers) == settings.limit:
            break
    if not answers:
        raise DataError(f"{where}: no answers with a {number_of} are left of {len(rows)} rows. {tally.reasons()}")
    return LoggedSet(answers, tally.skipped, (f"{where}: {len(answers)} answers of {len(rows)} rows", *tally.notes()))


def _read(number_of: Number, row: Mapping[str, Any], settings: RowSettings) -> LoggedAnswer:
    prompt = read_prompt(cell(row, "prompt"))
    completion = read_answer(cell(row, "completion"), prompt, "completion")
    refuse_half_characters(prompt, completion)
    value = float(is_good(row)) if number_of == "label" else number(cell(row, "reward"))
    if value is None:
        raise Skip("a reward that is no finite number", repr(row.get("reward"))[:40])
    if settings.chat == "on" and isinstance(prompt, str):
        prompt = (_user(prompt),)
    return LoggedAnswer(prompt, completion, value)


def _from_rankings(
    number_of: Number, rows: Sequence[Mapping[str, Any]], where: str, settings: RowSettings
) -> LoggedSet:
    try:
        found = load_rankings(rows, settings)
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
    return LoggedSet(answers, found.skipped, found.notes)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
