"""Documents out of text, HTML and JSON files. A broken file is an error that names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmrl.corpus.documents import Document
from lmrl.corpus.report import CorpusReport
from lmrl.corpus.settings import CorpusSettings
from lmrl.data.loading.compressed import CHUNK, decode, lines, open_bytes
from lmrl.data.loading.files import LISTS_IN_JSON, parse_json
from lmrl.errors import DataError, unknown

LARGEST_DOCUMENT = 1 << 30
"""Bytes of a .txt file that may be one document: it is held in memory."""


def text_documents(path: Path, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield a .txt file as one document, or the pieces between the separators without holding the file in memory."""
    if not settings.separator:
        with open_bytes(path) as stream:
            raw = stream.read(LARGEST_DOCUMENT + 1)
        if len(raw) > LARGEST_DOCUMENT:
            raise DataError(
                f"{path} is larger than {LARGEST_DOCUMENT >> 20} MiB, too large for one document; say what stands "
                'between its documents: corpus.separator="\\n\\n" is an empty line, "\\n" a line end.'
            )
        yield from _pieces([decode(raw, path, 1)], path)
        return
    yield from _pieces(_separated(path, settings.separator), path)


def _separated(path: Path, separator: str) -> Iterator[str]:
    mark = separator.encode()
    line, rest = 1, b""
    searched: list[bytes] = []  # the beginning of the piece at hand, in which no separator begins
    with open_bytes(path) as stream:
        while chunk := stream.read(CHUNK):
            *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(mark)
            for end in whole:
                piece = b"".join([*searched, end])
                searched.clear()
                yield decode(piece, path, line)
                line += piece.count(b"\n") + mark.count(b"\n")
            cut = max(0, len(rest) - len(mark))  # the chunk may end within a separator, or between \r and \n
            searched.append(rest[:cut])
            rest = rest[cut:]
    yield decode(b"".join([*searched, rest]), path, line)


def _pieces(texts: Iterable[str], path: Path) -> Iterator[Document]:
    found = (text for text in texts if text.strip())  # what lies between two separators in a row is no document
    for number, text in enumerate(found, start=1):
        yield Document(text, str(path), number)


def json_lines(path: Path, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the text of every line of a .jsonl file: an object with the column of the text, or a bare string."""
    reader = RowReader(str(path), settings.column, report)
    for number, line in lines(path):
        if line.strip():
            yield from reader.read(parse_json(line, path, number), number)


def json_file(path: Path, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the texts of a .json file: a list, an object that keeps one, or JSON lines under this name."""
    texts = lines(path)
    first = next(((number, line) for number, line in texts if line.strip()), None)
    if first is None:
        return
    try:
        whole_line = isinstance(json.loads(first[1]), dict | str) and next(texts, None) is not None
    except (ValueError, RecursionError):
        whole_line = False
    texts.close()  # type: ignore[attr-defined]
    if whole_line:  # the first line is an object of its own and others follow
        yield from json_lines(path, settings, report)
        return
    content = parse_json("\n".join(line for _, line in lines(path)), path)
    if isinstance(content, dict):
        key = next((key for key in LISTS_IN_JSON if isinstance(content.get(key), list)), None)
        content = content[key] if key else [content]
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a list of objects or of strings.")
    reader = RowReader(str(path), settings.column, report)
    for number, item in enumerate(content, start=1):
        yield from reader.read(item, number)


class RowReader:
    """Takes the text out of rows. The column must be in the first row; where a later row lacks it, that row is left
    out and counted."""

    def __init__(self, source: str, column: str, report: CorpusReport) -> None:
        self.source, self.column, self.report, self.found = source, column, report, False

    def read(self, row: object, number: int) -> Iterator[Document]:
        """Yield the row's document, or nothing if it has no text."""
        if isinstance(row, str):
            row = {self.column: row}
        if not isinstance(row, Mapping):
            raise DataError(f"{self.source}, row {number}: found a {type(row).__name__}; expected an object or a text.")
        if self.column not in row and not self.found:
            raise DataError(f"{self.source}, row {number}: {_no_column(self.column, row)}")
        self.found = True
        text = row.get(self.column)
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{self.source}, row {number}: the column {self.column!r} holds a {type(text).__name__}; expected text."
            )
        if not text or not text.strip():
            self.report.skip("read", "no text", f"{self.source}:{number}", self.source)
            return
        address = row.get("url")
        yield Document(text, self.source, number, address if isinstance(address, str) else "")


def _no_column(column: str, row: Mapping[str, Any]) -> str:
    texts = [name for name, value in row.items() if isinstance(value, str)]
    advice = f"Name the one that holds the text: corpus.column={texts[0]}" if texts else "None of them holds text."
    return unknown("column", column, row, advice)
