"""From a source to answered prompts: rows are read, their shape is found, and what is left out is counted by reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from lmrl.config.unread import only_if
from lmrl.data.layouts.conversations import longest, message
from lmrl.data.layouts.parts import Parts, as_answer, refuse_media
from lmrl.data.layouts.readers import is_good, labels_of, refuse_classes
from lmrl.data.layouts.reading import Answered, Skip, is_missing, refuse_half_characters
from lmrl.data.layouts.shapes import Row, Shape, Use, column_sets, recognise, row_columns
from lmrl.data.layouts.unmapped import refuse_unmapped, unused_columns
from lmrl.data.loading.sources import Opened, Source, open_rows
from lmrl.data.records import Answer, Message, Prompt
from lmrl.errors import DataError, SettingsError
from lmrl.text.conversation import is_trained, variables_of, with_variables

Chat = Literal["auto", "on", "off"]
Record = TypeVar("Record")


@dataclass
class RowSettings:
    """Source of rows, and the choice of conversations or plain texts."""

    path: str = ""
    """A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; text kinds also with .gz, .bz2, .xz or .zst), a glob or
    folder of such files, a folder saved by datasets, or the id of a data set on the hub."""
    split: str = "train"
    """The split of a hub data set or saved folder."""
    subset: str = ""
    """The configuration of a hub data set, for those that have several."""
    revision: str = ""
    """The branch, tag or commit of a hub data set, such as refs/convert/parquet."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Names of columns, ours = theirs: columns.prompt = "instruction", columns.completions = ["response1",
    "response2"]; docs/datasets.md lists ours. Columns under "unused" are left out on purpose."""
    limit: int = 0
    """Use the first so many examples or rankings at the most; 0 uses all."""
    chat: Chat = "auto"
    """Texts that become messages of a user and an assistant. auto: instructions and questions do, prompts to continue
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
    """Rows that were left out, by reason, and notes for a person."""

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
    setting: str = "data",
) -> Loaded[Record]:
    """Return what ``make`` makes of every answered prompt in the rows; it may raise ``Skip``.

    Raises ``DataError`` when the rows cannot be read, are of no shape for this use, or all are left out.
    """
    if settings.limit < 0:
        raise SettingsError(f"limit is {settings.limit}; expected a number of {use}, or 0 for all.")
    opened = open_rows(source, settings, use, setting)
    rows, where = opened.rows, opened.where
    shape = recognise(column_sets(rows), where, use, setting=setting)
    tally = Tally(where)
    reading = Reading(opened, shape, use)
    records: list[Record] = []
    for number, row, answered in _answered(reading, tally):
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
    notes = (f"{where}: {len(records)} {use} of {len(rows)} rows, {taken}", *opened.notes, *reading.notes())
    return Loaded(records, shape.name, tally.skipped, (*notes, *tally.notes()))


class Reading:
    """Reader of one source's rows: by their shape, with the columns beside prompts and the labels of answers.

    Raises ``DataError`` where a column that nothing reads decides what the rows mean.
    """

    def __init__(self, opened: Opened, shape: Shape, use: Use | Literal["logged"], number: str = "") -> None:
        self.opened, self.shape, self.use = opened, shape, use
        self.parts = Parts(opened.rows, opened.mapped, asked=shape.spoken)
        self.labelled = use == "examples" and self._has_labels()
        if shape.name in ("labelled", "labelled texts") or number == "label":
            refuse_classes(opened.rows, opened.where)
        self.used: set[str] = {*shape.columns, *self.parts.names, *({"label"} if self.labelled else ()), number}
        implicit = shape.name == "implicit preference"
        refuse_unmapped(opened.rows, self.used, opened.where, opened.setting, implicit, shape.columns[0])

    def complete(self, answered: Answered, row: Row) -> Answered:
        """Return what was read of a row together with its parts. Raises ``Skip`` for an answer labelled as bad."""
        refuse_media(row)
        required = "label" in self.shape.columns
        if self.labelled and (required or not is_missing(row.get("label"))) and not is_good(row):
            raise Skip("a completion that is labelled as bad")
        self.used.update(answered.used)
        if not self.parts.names:
            return answered
        prompt = self.parts.prompt(row, answered.prompt, answered.used)
        completions = tuple(as_answer(self.parts, row, answer) for answer in answered.completions)
        # Tools and variables stay among the columns as well: a prompt that is written down loses them.
        read = [name for name in self.parts.names if name not in ("tools", "chat_template_kwargs")]
        return replace(answered, prompt=prompt, completions=completions, used=(*answered.used, *read))

    def notes(self) -> list[str]:
        """Return how choices were counted, and which columns hold text and were not read."""
        what = "read, only kept with the rankings" if self.use == "rankings" else "used"
        where = self.opened.where
        return [
            *self.parts.notes(where),
            *unused_columns(self.opened.rows, self.used, where, self.opened.setting, what),
        ]

    def _has_labels(self) -> bool:
        if "label" in self.shape.columns:
            return self.shape.name == "labelled"
        return labels_of(self.opened.rows)


def _answered(reading: Reading, tally: Tally) -> Iterator[tuple[int, Row, Answered]]:
    """Yield what the shape's reader finds, with the row's number and the row."""
    shape, use = reading.shape, reading.use
    reader = shape.example if use == "examples" else shape.ranking
    assert reader is not None and use != "logged", "the shape was recognised for this use"
    for number, row in gathered(reading.opened.rows, shape, use):
        if isinstance(row, Skip):
            tally.skip(row, number)
            continue
        try:
            for found in reader(row):
                if isinstance(found, Skip):
                    tally.skip(found, number)
                else:
                    yield number, row, reading.complete(found, row)
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
    return as_message(prompt, chat, shape.spoken or in_turns), completions


def as_message(prompt: Prompt, chat: Chat, spoken: bool) -> Prompt:
    """Return a text prompt as a user's message with ``chat`` on, and with ``chat`` auto if it is ``spoken``.

    An instruction or a question is spoken; a text to be continued is not. Messages stay as they are.
    """
    if isinstance(prompt, str) and (chat == "on" or (chat == "auto" and spoken)):
        return (message("user", prompt),)
    return prompt


def plain_prompt(prompt: Prompt) -> str:
    """Return the text of a prompt that is a text or a single user message. Raises ``Skip`` for longer conversations."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user" and not variables_of(prompt):
        return str(prompt[0]["content"])
    raise Skip("a conversation that is more than one question and one answer, with chat = off")


def _plain_answer(answer: Answer) -> str:
    if isinstance(answer, str):
        return answer
    raise Skip("a conversation that is more than one question and one answer, with chat = off")


def conversation(prompt: tuple[Message, ...], answer: Answer) -> tuple[Message, ...]:
    """Return a prompt and its answer as one conversation. Raises ``Skip`` where none of it is trained."""
    if prompt[-1]["role"] == "assistant":
        raise Skip("a prompt that ends with the assistant")
    messages = (*prompt, *longest(answer))
    if not any(item["role"] == "assistant" and is_trained(item) for item in messages):
        raise Skip("no assistant message of a weight above 0")
    return with_variables(messages, variables_of(prompt))


def columns_of(row: Mapping[str, Any], answered: Answered) -> dict[str, Any]:
    """Return the columns of a row that are not in what was read of it."""
    return {name: value for name, value in row.items() if name not in answered.used} | dict(answered.columns)
