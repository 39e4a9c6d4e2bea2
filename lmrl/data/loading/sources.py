"""Rows from whatever holds them: a path, a hub id, a list, a table of pandas, polars, pyarrow or ``datasets``.

Every stage and the environment read their data here; ``lmrl.data.layouts.shapes`` says what the rows mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from lmrl.data.layouts.conversations import looks_like_messages
from lmrl.data.layouts.mapping import map_columns
from lmrl.data.loading.compressed import kind_of
from lmrl.data.loading.files import READERS, read_rows
from lmrl.errors import DataError

Row: TypeAlias = Mapping[str, Any]
Source: TypeAlias = Any
"""A path, a glob or hub id, rows, texts, or a table: pandas, polars, pyarrow, ``Dataset``, ``DatasetDict``."""


class SourceSettings(Protocol):
    """The settings that say where rows come from and what their columns are called."""

    path: str
    split: str
    subset: str
    revision: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class Opened:
    """Rows with their columns renamed, the name of their source, and notes on the renaming.

    ``mapped`` are the column names that ``columns`` set on purpose.
    """

    rows: list[Row]
    where: str
    notes: tuple[str, ...] = ()
    mapped: frozenset[str] = frozenset()
    setting: str = "data"
    """The section of a recipe whose ``columns`` map names, for messages."""


def open_rows(source: Source | None, settings: SourceSettings, what: str, setting: str = "data") -> Opened:
    """Return the rows of a source, or of ``settings.path`` where it is None.

    ``what`` names the rows in messages, ``setting`` the section whose ``columns`` map names. A text among the rows is a
    prompt. Raises ``DataError`` when the source cannot be read, holds no rows, or a row is no mapping.
    """
    source = settings.path if source is None else source
    if isinstance(source, str | Path):
        if not str(source):
            advice = " In a recipe that is prompts.file.path." if what == "prompts" else ""
            raise DataError(
                f"no {what} were named; expected a list of rows, a file, a folder or the id of a data set.{advice}"
            )
        rows: list[Row] = list(read_rows(source, settings.split, settings.subset, settings.revision))
        where = str(source)
    else:
        where = f"the list of {what}"
        found = list(_items(source, settings, where))
        names = all(isinstance(item, str) and kind_of(Path(item)) in READERS for item in found)
        if names and any(isfile(item) for item in found):
            raise DataError(
                f"{where} holds names of files, such as {found[0]}; expected rows, or one path, folder or glob."
            )
        items = enumerate(found, start=1)
        rows = [_row(item, f"{where}, row {number}", texts=what == "prompts") for number, item in items]
    if not rows:
        raise DataError(f"{where} holds no rows; expected at least one.")
    mapped, notes = map_columns(rows, settings.columns, where, setting)
    return Opened(mapped, where, tuple(notes), frozenset(settings.columns), setting)


def is_table(source: object) -> bool:
    """Return whether a source is a path or table that ``open_rows`` reads, rather than a plain sequence of items."""
    return isinstance(source, str | Path) or _reader_of(source) is not None or _splits(source) is not None


def _items(source: Any, settings: SourceSettings, where: str) -> Iterable[Any]:
    splits = _splits(source)
    if splits is not None:
        if settings.split not in splits:
            raise DataError(f"{where} has no split {settings.split!r}; it has {', '.join(splits)}.")
        source = splits[settings.split]
    read = _reader_of(source)
    try:
        if read is not None:
            return list(read())
    except Exception as error:  # pandas, polars, pyarrow and datasets raise many kinds
        raise DataError(f"{where} cannot be read ({type(error).__name__}: {error}).") from error
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        raise DataError(f"{where} is one {type(source).__name__}; expected a list of rows, a table or a path.")
    return source


def _splits(source: object) -> Mapping[str, Any] | None:
    """Return the splits of a ``DatasetDict``: a mapping of names to tables."""
    if isinstance(source, Mapping) and source and all(_reader_of(value) is not None for value in source.values()):
        return source
    return None


def _reader_of(source: Any) -> Any:
    """Return what gives a table's rows as dicts, by the method that the library offers; None for anything else."""
    if isinstance(source, Mapping | Sequence):
        return None
    if hasattr(source, "iterrows") and hasattr(source, "notna"):  # pandas, whose missing cells are NaN

        def without_missing() -> Any:
            return source.astype(object).where(source.notna(), None).to_dict(orient="records")

        return without_missing
    return next((getattr(source, name) for name in ("to_dicts", "to_pylist", "to_list") if hasattr(source, name)), None)


def _row(item: object, where: str, texts: bool) -> Row:
    if texts and (isinstance(item, str) or (item and looks_like_messages(item))):
        return {"prompt": item}
    if isinstance(item, Mapping):
        return item
    expected = "a string, messages or a dict" if texts else "a dict"
    raise DataError(f"{where}: found a {type(item).__name__}; expected {expected}.")
