"""Prompts for training and evaluation, with the columns that a reward checks against.

``load_prompts`` takes lists, files and hub ids; ``PromptSet.split`` keeps prompts back for evaluation. Leaves out
tokenization (except of chat prompts, whose template speaks in tokens) and the order of training
(``lmrl.seeds``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lmrl.config.unread import only_if
from lmrl.data.layouts.chat import render
from lmrl.data.layouts.columns import SETTING, PromptReader, RowPrompt
from lmrl.data.layouts.reading import Skip, refuse_half_characters
from lmrl.data.layouts.rows import Chat, Tally, as_message, gathered, unread_of_file
from lmrl.data.layouts.shapes import column_sets, find_shape
from lmrl.data.loading.sources import Opened, Source, open_rows
from lmrl.data.notes import log_notes
from lmrl.data.splitting import digest_of, held_out_places, others
from lmrl.errors import DataError, SettingsError
from lmrl.text.chat_rendering import unread_keys

if TYPE_CHECKING:
    from lmrl.text.card import TextCodec


logger = logging.getLogger(__name__)


@dataclass
class PromptSettings:
    """Source of prompts."""

    path: str = ""
    """A file (.txt with a prompt per line, .json, .jsonl, .csv, .tsv, .parquet, .arrow; text kinds also with .gz, .bz2,
    .xz or .zst), a glob or folder of such files, a folder saved by datasets, or the id of a data set on the hub."""
    split: str = "train"
    """The split of a hub data set or saved folder."""
    subset: str = ""
    """The configuration of a hub data set, for those that have several."""
    revision: str = ""
    """The branch, tag or commit of a hub data set, such as refs/convert/parquet."""
    column: str = ""
    """The column that contains the prompt; empty means that the shape of the rows is recognised by their columns."""
    template: str = ""
    """The prompt made of columns by name, such as "Q: {question}\\nA:"; empty takes the prompt as it is."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Names of columns, ours = theirs: columns.prompt = "problem", columns.choices = "options"; docs/datasets.md lists
    ours. Columns under "unused" are left out on purpose."""
    limit: int = 0
    """Use the first so many prompts at the most; 0 uses all."""
    chat: Chat = "auto"
    """Prompts that become a user's message. auto: instructions and questions, if the model has a chat template; texts
    to continue stay text. on: every text. off: none, and a conversation of one question becomes its text."""

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        filled = bool(self.template) and "{prompt" not in self.template
        return unread_of_file(self.path) | only_if(not filled, "template left out", "column")


@dataclass(frozen=True)
class PromptSet:
    """Prompts and, by name, the columns that came with them; row i of every list belongs to prompt i.

    ``prompt_ids`` is set when the rows were given as token ids or as chat messages: encode ``prompts`` otherwise.
    ``shape`` says what the rows were taken for, ``notes`` what a person should know about the reading.
    """

    prompts: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    prompt_ids: list[list[int]] | None = None
    shape: str = "prompt"
    notes: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    """Source and row number of each prompt, such as "math.jsonl, row 17"; empty where they are not known."""

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, indices: Sequence[int]) -> PromptSet:
        """Return the prompts at these indices, in this order; an index may come more than once."""
        return PromptSet(
            prompts=[self.prompts[index] for index in indices],
            columns={name: [values[index] for index in indices] for name, values in self.columns.items()},
            prompt_ids=None if self.prompt_ids is None else [self.prompt_ids[index] for index in indices],
            shape=self.shape,
            notes=self.notes,
            origins=tuple(self.origins[index] for index in indices) if self.origins else (),
        )

    def split(self, held_out: float, seed: int = 0) -> tuple[PromptSet, PromptSet]:
        """Return (training, held-out) prompts; ``held_out`` is a count, or a share below 1.

        Membership depends on the seed and the prompt's text alone, so it survives a new order of the rows, and equal
        prompts stay on one side. Where repeated prompts do not fit the count exactly, fewer are held out.
        Raises ``SettingsError`` for a count that is not a whole number or leaves nothing to train on.
        """
        chosen = held_out_places([self._key(index) for index in range(len(self))], held_out, seed, "prompts")
        return self.select(others(chosen, len(self))), self.select(chosen)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the prompts and columns: a resumed run compares it to refuse changed data."""
        names = sorted(self.columns)
        return digest_of(
            [
                prompt,
                None if self.prompt_ids is None else self.prompt_ids[index],
                {name: self.columns[name][index] for name in names},
            ]
            for index, prompt in enumerate(self.prompts)
        )

    def _key(self, index: int) -> str:
        return self.prompts[index] if self.prompt_ids is None else repr(self.prompt_ids[index])


def load_prompts(
    source: Source | None = None, settings: PromptSettings | None = None, codec: TextCodec | None = None
) -> PromptSet:
    """Read prompts from a list of texts, a list of rows, a file, a saved folder or the hub.

    ``source`` defaults to ``settings.path``. Every column but the prompt's own is kept by name for the reward.
    ``codec``, the model's, is needed for prompts that are chat messages or token ids; the messages themselves go to the
    reward as the column ``prompt_messages``. Rows with an empty or broken prompt are left out and counted in ``notes``.

    Raises ``DataError`` when the source is missing, broken, of an unknown shape, or has no prompt that is not empty.
    """
    found = _find(source, settings or PromptSettings())
    tally = Tally(found.where)
    rendered: list[tuple[str, list[int] | None]] = []
    kept: list[int] = []
    prompts = _spoken_to(found, codec)
    for index, (prompt, number) in enumerate(zip(prompts, found.numbers, strict=True)):
        try:
            rendered.append(render(prompt, codec, f"{found.where}, row {number}"))
            kept.append(index)
        except Skip as skip:
            tally.skip(skip, number)
    if not kept:
        raise DataError(f"{found.where}: no prompts are left of {len(found.prompts)}. {tally.reasons()}")
    ids = [row for _, row in rendered if row is not None]
    if ids and len(ids) != len(rendered):
        raise DataError(
            f"{found.where}: {len(ids)} prompts are token ids or messages and {len(rendered) - len(ids)} are text; "
            'expected one kind (chat = "on" makes messages of texts, "off" texts of single questions).'
        )
    columns = {name: [values[index] for index in kept] for name, values in found.columns.items()}
    messages = [prompts[index].content for index in kept if not isinstance(prompts[index].content, str)]
    notes = [*found.notes, *tally.notes()]
    if messages:
        columns["prompt_messages"] = [list(item) for item in messages]
        notes += dropped_keys(codec, messages, found.where)
    texts, origins = [text for text, _ in rendered], tuple(found.origins[index] for index in kept)
    return PromptSet(texts, columns, ids or None, found.shape, tuple(notes), origins)


def _spoken_to(found: _Found, codec: TextCodec | None) -> list[RowPrompt]:
    """Return the prompts, instructions and questions as messages if the model has a chat template; the log says so."""
    if codec is None or not codec.chat_template:
        return found.prompts
    asked = [replace(prompt, content=as_message(prompt.content, "auto", prompt.spoken)) for prompt in found.prompts]
    count = sum(isinstance(prompt.content, str) and prompt.spoken for prompt in found.prompts)
    if count:
        logger.info(
            "%s: %d prompts are instructions or questions and the model has a chat template, so each is asked as a "
            'user\'s message; chat = "off" in the section of the prompts completes them as text',
            found.where,
            count,
        )
    return asked


def dropped_keys(codec: TextCodec | None, conversations: Sequence[object], where: str) -> list[str]:
    """Return a note for every message key or template variable that the model's chat template does not render."""
    unread = unread_keys(codec, conversations) if codec is not None and codec.chat_template else {}
    return [
        f"{where}: the chat template does not render {name!r}, which {count} conversations contain"
        for name, count in unread.items()
    ]


def load_rows(settings: PromptSettings, source: Source | None = None) -> list[dict[str, Any]]:
    """Return the same prompts as rows with a ``prompt`` (text or messages) and the columns, for data set plugins.

    It needs no model: chat templates are applied by whoever hands the rows to ``load_prompts`` with a codec. What
    ``PromptSet.notes`` would say goes to the log.
    """
    found = _find(source, settings)
    log_notes(logger, found.notes)
    rows: list[dict[str, Any]] = []
    for index, prompt in enumerate(found.prompts):
        row = OriginRow({name: values[index] for name, values in found.columns.items()})
        row["prompt"] = prompt.content if isinstance(prompt.content, str) else list(prompt.content)
        if prompt.ids is not None:
            row["prompt_ids"] = prompt.ids
        row.origin, row.spoken = found.origins[index], prompt.spoken
        rows.append(row)
    return rows


class OriginRow(dict[str, Any]):
    """A row with the name of its source and its number there, which messages show.

    ``spoken``: its text prompt is an instruction or a question; see ``RowPrompt``.
    """

    origin: str = ""
    spoken: bool = False


@dataclass(frozen=True)
class _Found:
    """Prompts as they were found, with the numbers of their rows."""

    where: str
    prompts: list[RowPrompt]
    numbers: list[int]
    columns: dict[str, list[Any]]
    shape: str
    notes: tuple[str, ...]
    origins: tuple[str, ...]


def _find(source: Source | None, settings: PromptSettings) -> _Found:
    if settings.limit < 0:
        raise SettingsError(f"limit is {settings.limit}; expected a number of prompts, or 0 for all.")
    opened = open_rows(source, settings, "prompts", SETTING)
    rows, where = opened.rows, opened.where
    tally = Tally(where)
    numbered = _numbered(opened, settings, tally)
    reader = PromptReader(
        [row for _, row in numbered], where, settings.column, settings.template, settings.chat, opened.mapped
    )
    kept: list[tuple[int, Mapping[str, Any], RowPrompt]] = []
    for number, row in numbered:
        try:
            prompt = reader.read(row, number)
            if prompt is None:
                raise Skip("an empty prompt")
            refuse_half_characters(prompt.content)
        except Skip as skip:
            tally.skip(skip, number)
            continue
        kept.append((number, row, prompt))
        if len(kept) == settings.limit:
            break
    if not kept:
        raise DataError(
            f"{where}: no prompts are left of {len(rows)} rows, taken for the shape {reader.described}. "
            f"{tally.reasons()}"
        )
    prompts = [prompt for _, _, prompt in kept]
    columns = reader.columns([row for _, row, _ in kept], prompts)
    taken = f"{where}: {len(kept)} prompts, taken for the shape {reader.described}"
    notes = (
        taken,
        *opened.notes,
        *reader.notes,
        *reader.answer_notes(),
        *reader.parts.notes(where),
        *tally.notes(),
    )
    origins = tuple(getattr(row, "origin", "") or f"{where}, row {number}" for number, row, _ in kept)
    return _Found(where, prompts, [number for number, _, _ in kept], columns, reader.name, notes, origins)


def _numbered(opened: Opened, settings: PromptSettings, tally: Tally) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the rows with their numbers from 1; rows that are messages of trees are put together."""
    rows = opened.rows
    shape = None if settings.column or settings.template else find_shape(column_sets(rows))
    if shape is None or shape.gather is None or "prompts" not in shape.gather_for:
        return list(enumerate(rows, start=1))
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, row in gathered(rows, shape, "prompts"):
        if isinstance(row, Skip):
            tally.skip(row, number)
        else:
            found.append((number, row))
    return found
