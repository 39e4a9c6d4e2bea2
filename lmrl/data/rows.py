"""From a source to answered prompts: rows are read, their shape is found, and what is left out is counted by reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from lmrl.config.unread import only_if
from lmrl.data.conversations import longest, message
from lmrl.data.files import read_rows
from lmrl.data.reading import Answered, Skip, refuse_half_characters
from lmrl.data.records import Answer, Message, Prompt
from lmrl.data.shapes import Row, Shape, Use, column_sets, recognise, row_columns
from lmrl.errors import DataError, SettingsError

Chat = Literal["auto", "on", "off"]
Source: TypeAlias = str | Path | Sequence[Row]
Record = TypeVar("Record")


@dataclass
class RowSettings:
    """Where rows come from, and whether they become conversations."""

    path: str = ""
    """A file (.jsonl, .json, .csv, .parquet, .arrow; text kinds also with .gz or .zst), a folder saved by datasets, or
    the id of a data set on the hub."""
    split: str = "train"
    """The split of a hub data set or saved folder."""
    subset: str = ""
    """The configuration of a hub data set, for those that have several."""
    revision: str = ""
    """The branch, tag or commit of a hub data set, such as refs/convert/parquet."""
    limit: int = 0
    """Use the first so many examples or rankings at the most; 0 uses all."""
    chat: Chat = "auto"
    """Which texts become messages of a user and an assistant. auto: instructions and questions do, prompts to continue
    stay text; on: all do; off: none do, and a conversation of one question and one answer becomes text."""

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return unread_of_file(self.path)


def unread_of_file(path: str) -> dict[str, str]:
    """Return the settings of a source that nothing reads because the path is a single file."""
    is_file = bool(path) and Path(path).expanduser().is_file()
    return only_if(not is_file, "path set to a folder or a data set on the hub", "split", "subset", "revision")


@dataclass
class Tally:
    """What was left out, by reason, and what a person should know besides."""

    where: str
    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)

    def skip(self, skip: Skip, number: int) -> None:
        """Count a row, or a part of one, that is left out."""
        self.skipped[skip.reason] = self.skipped.get(skip.reason, 0) + 1
        self.first.setdefault(skip.reason, f"row {number}" + (f": {skip.detail}" if skip.detail else ""))

    def remark(self, text: str) -> None:
        """Count something that a person should know of a row that is kept."""
        self.remarks[text] = self.remarks.get(text, 0) + 1

    def notes(self) -> list[str]:
        """Return a line for each reason and remark, with its count and the number of the first row."""
        left_out = [f"{self.where}: left out {self._counted(reason)}" for reason in self.skipped]
        return left_out + [f"{self.where}: in {count} rows, {text}" for text, count in self.remarks.items()]

    def reasons(self) -> str:
        """Return all that was left out in one sentence, for the error when nothing is left."""
        return f"Left out {'; '.join(map(self._counted, self.skipped))}." if self.skipped else ""

    def _counted(self, reason: str) -> str:
        return f"{self.skipped[reason]}: {reason} (first: {self.first[reason]})"


@dataclass(frozen=True)
class Loaded(Generic[Record]):
    """Records of one source, with what was left out."""

    records: list[Record]
    shape: str
    skipped: dict[str, int]
    notes: tuple[str, ...]


def load(
    source: Source | None,
    settings: RowSettings,
    use: Use,
    make: Callable[[Answered, Row, Shape, Tally], Record],
) -> Loaded[Record]:
    """Return what ``make`` makes of every answered prompt in the rows; it may raise ``Skip``.

    Raises ``DataError`` when the rows cannot be read, are of no shape for this use, or all are left out.
    """
    if settings.limit < 0:
        raise SettingsError(f"limit is {settings.limit}; expected a number of {use}, or 0 for all.")
    rows, where = _rows(settings.path if source is None else source, settings, use)
    shape = recognise(column_sets(rows), where, use)
    tally = Tally(where)
    records: list[Record] = []
    for number, row, answered in _answered(rows, shape, use, tally):
        try:
            refuse_half_characters(answered.prompt, *answered.completions)
            records.append(make(answered, row, shape, tally))
        except Skip as skip:
            tally.skip(skip, number)
            continue
        if answered.note:
            tally.remark(answered.note)
        if len(records) == settings.limit:
            break
    taken = f"taken for the shape {shape.name} ({', '.join(shape.columns)})"
    if not records:
        raise DataError(f"{where}: no {use} are left of {len(rows)} rows, {taken}. {tally.reasons()}")
    notes = (f"{where}: {len(records)} {use} of {len(rows)} rows, {taken}", *tally.notes())
    return Loaded(records, shape.name, tally.skipped, notes)


def _rows(source: Source, settings: RowSettings, use: Use) -> tuple[Sequence[Row], str]:
    if isinstance(source, str | Path):
        if not str(source):
            raise DataError(f"no {use} were named; expected a list of rows, a file, or the id of a data set.")
        rows: Sequence[Row] = read_rows(source, settings.split, settings.subset, settings.revision)
        where = str(source)
    else:
        rows, where = list(source), f"the list of {use}"
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                raise DataError(f"{where}, row {number}: found a {type(row).__name__}; expected a dict.")
    if not rows:
        raise DataError(f"{where} holds no rows; expected at least one.")
    return rows, where


def _answered(rows: Sequence[Row], shape: Shape, use: Use, tally: Tally) -> Iterator[tuple[int, Row, Answered]]:
    """Yield what the shape's reader finds, with the row's number and the row."""
    reader = shape.example if use == "examples" else shape.ranking
    assert reader is not None, "the shape was recognised for this use"
    for number, row in gathered(rows, shape, use):
        if isinstance(row, Skip):
            tally.skip(row, number)
            continue
        try:
            for found in reader(row):
                if isinstance(found, Skip):
                    tally.skip(found, number)
                else:
                    yield number, row, found
        except Skip as skip:
            tally.skip(skip, number)


def gathered(rows: Sequence[Row], shape: Shape, use: Use) -> Iterator[tuple[int, Row | Skip]]:
    """Yield the rows with their numbers, put together where the shape says so; ``Skip`` for those that lack columns."""
    complete: list[Row] = []
    numbers: list[int] = []
    for number, row in enumerate(rows, start=1):
        lacking = [name for name in shape.columns if name not in row_columns(row)]
        if lacking:
            yield number, Skip(f"no {lacking[0]!r}")
        elif shape.gather is None or use not in shape.gather_for:
            yield number, row
        else:
            complete.append(row)
            numbers.append(number)
    if shape.gather is not None and use in shape.gather_for:
        for place, together in shape.gather(complete):
            yield numbers[place - 1], together


def as_asked(answered: Answered, chat: Chat, shape: Shape) -> tuple[Prompt, tuple[Answer, ...]]:
    """Return prompt and answers as text or as messages, as ``chat`` says; see ``RowSettings.chat``.

    Raises ``Skip`` when ``chat`` is off and the conversation has more than one question or answer.
    """
    prompt, completions = answered.prompt, answered.completions
    if chat == "off":
        return plain_prompt(prompt), tuple(_plain_answer(item) for item in completions)
    in_turns = any(not isinstance(item, str) for item in completions)
    if isinstance(prompt, str) and (chat == "on" or shape.spoken or in_turns):
        return (message("user", prompt),), completions
    return prompt, completions


def plain_prompt(prompt: Prompt) -> str:
    """Return the text of a prompt that is a text or a single user message. Raises ``Skip`` for longer conversations."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    raise Skip("a conversation that is more than one question and one answer, with chat = off")


def _plain_answer(answer: Answer) -> str:
    if isinstance(answer, str):
        return answer
    raise Skip("a conversation that is more than one question and one answer, with chat = off")


def conversation(prompt: tuple[Message, ...], answer: Answer) -> tuple[Message, ...]:
    """Return a prompt and its answer as one conversation."""
    return (*prompt, *longest(answer))


def columns_of(row: Mapping[str, Any], answered: Answered) -> dict[str, Any]:
    """Return the columns of a row that are not in what was read of it."""
    return {name: value for name, value in row.items() if name not in answered.used} | dict(answered.columns)
