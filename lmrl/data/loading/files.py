"""Rows from a file, a folder or the hub, as plain dicts. What the rows mean is ``lmrl.data.layouts.shapes``' business.

Text, JSON and CSV are read with the standard library, so that a broken line can be named; CSV cells stay strings.
Parquet and Arrow files are read with pyarrow; saved folders and hub ids go through ``datasets``, imported when needed.
Which files of a folder are read is ``lmrl.data.loading.shards``' business.
Leaves out streaming: a prompt set is held in memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from lmrl.data.loading.compressed import COMPRESSED, kind_of, lines
from lmrl.data.loading.shards import folder_shards, is_glob, is_saved, matching_shards
from lmrl.errors import DataError, nearest

Row = dict[str, Any]
LISTS_IN_JSON = ("examples", "data", "rows")
"""Keys under which a JSON object keeps its rows."""
LONGEST_CELL = 1 << 30
"""Characters of a CSV cell; Python's own limit of 131,072 is too short for documents."""


def read_rows(source: str | Path, split: str = "train", subset: str = "", revision: str = "") -> list[Row]:
    """Return the rows of a file, a glob, a folder of files or saved by ``datasets``, or a data set on the hub.

    ``split``, ``subset`` and ``revision`` belong to folders and the hub. Raises ``DataError``.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if is_saved(path):
            return _saved_folder(path, split)
        return [row for file in folder_shards(path, split, READERS) for row in _local(file)]
    if path.exists():
        return _local(path)
    if is_glob(str(source)):
        return [row for file in matching_shards(path, READERS) for row in _local(file)]
    refuse_missing_file(str(source), path, READERS, "Expected a file, or the id of a data set on the hub.")
    return _from_hub(str(source), split, subset, revision)


def _local(path: Path) -> list[Row]:
    reader = READERS.get(kind_of(path))
    if reader is None:
        raise DataError(
            f"{path}: unknown kind of file; expected one of {', '.join(sorted(READERS))}, the text kinds also with "
            f"{' or '.join(COMPRESSED)}."
        )
    return reader(path)


def _text(path: Path) -> list[Row]:
    return [{"prompt": line} for _, line in lines(path)]


def _json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in lines(path):
        if line.strip():
            rows.append(_row(parse_json(line, path, number), f"{path}, line {number}"))
    return rows


def parse_json(text: str, path: Path, line: int = 0) -> object:
    """Return what JSON says. ``line`` is the number of the one line that the text is; 0: the text is the whole file.

    Raises ``DataError`` with the place.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        unfinished = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        advice = " It ends in the middle: if it is the last line, the file was cut short." if unfinished else ""
        raise DataError(
            f"{path}, line {line or error.lineno}: not valid JSON ({error.msg}, column {error.colno}).{advice}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested as deep
        raise DataError(f"{path}, line {line or 1}: JSON that cannot be read ({error}).") from error


def _json(path: Path) -> list[Row]:
    text = "\n".join(line for _, line in lines(path))
    try:
        content = parse_json(text, path)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data" and cause.lineno > 1:
            return _json_lines(path)  # JSON lines under the name .json, common on the hub
        raise DataError(f"{error} A file with one object per line is named .jsonl.") from cause
    if isinstance(content, dict):
        lists = [key for key in LISTS_IN_JSON if isinstance(content.get(key), list)]
        filled = [key for key in lists if content[key]]
        if len(filled) > 1:
            raise DataError(
                f"{path} keeps rows under {' and '.join(filled)}; expected one list of rows. Split the file."
            )
        if not lists:
            raise DataError(
                f"{path} holds one object with the keys {', '.join(sorted(content)) or '(none)'}; expected a list of "
                f"rows, or an object that keeps them under {', '.join(LISTS_IN_JSON)}."
            )
        content = content[(filled or lists)[0]]
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a list of objects or of strings.")
    return [_row(item, f"{path}, item {number}") for number, item in enumerate(content, start=1)]


def _row(item: object, where: str) -> Row:
    if isinstance(item, str):
        return {"prompt": item}
    if isinstance(item, dict):
        return item
    raise DataError(f"{where}: found a {type(item).__name__}; expected an object or a string.")


def _tsv(path: Path) -> list[Row]:
    return _csv(path, "\t")


def _csv(path: Path, delimiter: str = ",") -> list[Row]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader((line + "\n" for _, line in lines(path)), strict=True, delimiter=delimiter)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.reader.line_num}: not valid CSV ({error}).") from error
    names = list(reader.fieldnames or [])
    other = next((mark for mark in ",;\t|" if len(names) == 1 and mark in names[0] and mark != delimiter), "")
    if other:
        kind = ".tsv, or convert it" if other == "\t" else f"{path.suffix} with {delimiter!r} between cells"
        raise DataError(f"{path}: the header is one column, {names[0]!r}, with {other!r} in it; expected {kind}.")
    doubled = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if doubled is not None:
        raise DataError(f"{path}: two columns are named {doubled!r}; give each a name of its own.")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number}: not as many cells as the header has columns.")
    return rows


def _parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    return _arrow_rows(path, lambda: pyarrow.parquet.read_table(path))


def _arrow(path: Path) -> list[Row]:
    import pyarrow

    def read() -> Any:
        with pyarrow.memory_map(str(path)) as stream:
            try:
                return pyarrow.ipc.open_stream(stream).read_all()
            except pyarrow.ArrowInvalid:
                return pyarrow.ipc.open_file(stream).read_all()

    return _arrow_rows(path, read)


def _arrow_rows(path: Path, read: Callable[[], Any]) -> list[Row]:
    try:
        table = read()
        table.validate(full=True)  # damaged offsets would be read as somebody else's memory
        rows: list[Row] = table.to_pylist()
    except Exception as error:  # pyarrow raises its own kinds, and Python's where a value is damaged
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}); the file is cut short or damaged."
        ) from error
    return rows


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no reason given"


def refuse_missing_file(name: str, path: Path, kinds: Collection[str], expected: str) -> None:
    """Tell a mistyped path from a hub id: what looks like a path and does not exist is an error with its neighbour.

    ``kinds`` are the suffixes that belong to files; ``expected`` is the sentence that says what a name may be.
    """
    owner_and_name = name.count("/") == 1 and not path.parent.is_dir()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or kind_of(path) in kinds
    if not looks_local and (owner_and_name or "/" not in name):
        return
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"there is no file {name}: its folder {folder} does not exist.")
    guess = nearest(path.name, [item.name for item in folder.iterdir()])
    hint = f" Did you mean {folder / guess}?" if guess else ""
    raise DataError(f"there is no file {name}.{hint} {expected}")


def _saved_folder(path: Path, split: str) -> list[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(path))
        if isinstance(found, DatasetDict):
            if split not in found:
                raise DataError(f"{path} has no split {split!r}; it has {', '.join(found)}.")
            found = found[split]
        found.data.table.validate(full=True)
        rows: list[Row] = found.to_list()
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds; each means that the folder is damaged
        raise DataError(
            f"{path} was saved by datasets and cannot be read ({type(error).__name__}: {_first_line(error)}); a file "
            "is missing or damaged, save it again."
        ) from error
    return rows


def _from_hub(name: str, split: str, subset: str, revision: str) -> list[Row]:
    from datasets import load_dataset

    try:
        rows: list[Row] = load_dataset(name, subset or None, split=split, revision=revision or None).to_list()
    except Exception as error:  # datasets and the hub client raise many kinds; each means that there are no rows
        raise DataError(
            f"{name} is neither a file here nor a data set on the hub that can be reached (split {split!r}; "
            f"{type(error).__name__}: {_first_line(error)})"
        ) from error
    return rows


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".txt": _text,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""Readers of each kind of file, by its suffix."""
