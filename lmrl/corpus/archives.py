"""Documents out of web archives: pages of WARC files by trafilatura, plain text of WET files; broken records skipped.

Archives are large and now and then damaged, so a broken record is counted, with its file and number, and reading goes
on at the next one. warcio alone would end the file there without a word, which is why gzip members are split here.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.corpus.documents import Document, extra
from lmrl.corpus.report import CorpusReport
from lmrl.corpus.settings import CorpusSettings
from lmrl.data.loading.compressed import CHUNK, open_bytes
from lmrl.errors import DataError

GZIP_START = b"\x1f\x8b\x08"
RECORD_START = b"WARC/1."
LARGEST_MEMBER = 1 << 28
"""Bytes that one gzip member may unpack to; each record of an archive is a member of its own."""
LONGEST_HEADER = 1 << 16
PAGES = ("text/html", "application/xhtml+xml")
PLAIN = "text/plain"


@dataclass(frozen=True)
class _Broken:
    reason: str


def archive_documents(path: Path, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the pages of a WARC file and the texts of a WET file, both also with .gz."""
    extra("warcio", f"{path}: reading web archives")
    source, number, readable = str(path), 0, 0
    for part in _gzip_members(path) if path.suffix.lower() == ".gz" else _plain_records(path):
        if isinstance(part, _Broken):
            number += 1
            report.skip("read", part.reason, f"{source}:{number}", source)
            continue
        for record in _records(part):
            number += 1
            readable += not isinstance(record, _Broken)
            if isinstance(record, _Broken):
                report.skip("read", record.reason, f"{source}:{number}", source)
                continue
            yield from _document(record, source, number, report)
    if not readable:
        raise DataError(f"{path} holds no record that can be read; expected a web archive (WARC or WET).")


def html_documents(path: Path, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the main text of one HTML page."""
    with open_bytes(path) as stream:
        body = stream.read()
    text = main_text(body, "")
    if text:
        yield Document(text, str(path), 1)
    else:
        report.skip("extract", "no main text", str(path), str(path), len(body))


def main_text(body: bytes, encoding: str) -> str:
    """Return the main text of an HTML page without menus, footers and comments (trafilatura; Barbaresi 2021).

    ``encoding`` is what the server said; where it is empty or wrong, trafilatura guesses.
    """
    trafilatura = extra("trafilatura", "the main text of a web page")
    page: Any = body
    if encoding:
        try:
            page = body.decode(encoding)
        except (LookupError, UnicodeDecodeError):
            page = body
    return trafilatura.extract(page, include_comments=False) or ""


@dataclass(frozen=True)
class _Record:
    kind: str
    address: str
    content_type: str
    encoding: str
    status: str
    body: bytes


def _document(record: _Record, source: str, number: int, report: CorpusReport) -> Iterator[Document]:
    where = f"{source}:{number}" + (f" ({record.address})" if record.address else "")

    def skip(reason: str) -> None:
        report.skip("extract", reason, where, source, len(record.body))

    if record.kind not in ("response", "conversion", "resource"):
        return  # requests and metadata are no documents
    if record.kind == "resource" and not record.address.startswith(("http:", "https:")):
        return  # the crawler's own log
    if record.status and record.status != "200":
        return skip(f"HTTP status {record.status}")
    if record.content_type in PAGES:
        text = main_text(record.body, record.encoding)
        if not text:
            return skip("no main text")
    elif record.content_type == PLAIN:
        try:
            text = record.body.decode(record.encoding or "utf-8")
        except (LookupError, UnicodeDecodeError):
            return skip("text that is not in its declared encoding")
        if not text.strip():
            return skip("no main text")
    else:
        return skip(f"not a page: {record.content_type or 'no content type'}")
    yield Document(text, source, number, record.address)


def _records(content: bytes) -> Iterator[_Record | _Broken]:
    """Yield the records of an unpacked piece of an archive."""
    from warcio.archiveiterator import ArchiveIterator

    if not content.startswith(b"WARC/"):
        yield _Broken("not a WARC record")
        return
    try:
        for record in ArchiveIterator(io.BytesIO(content), arc2warc=False):
            headers = record.http_headers or record.rec_headers
            kind, _, parameters = (headers.get_header("Content-Type") or "").partition(";")
            body = record.content_stream().read()
            record.raw_stream.read()  # what a page's own encoding left over
            if getattr(record.raw_stream, "limit", 0) > 0:
                yield _Broken("truncated record")
                return
            yield _Record(
                kind=record.rec_type,
                address=(record.rec_headers.get_header("WARC-Target-URI") or "").strip("<>"),
                content_type=kind.strip().lower(),
                encoding=_charset(parameters),
                status=record.http_headers.get_statuscode() if record.http_headers else "",
                body=body,
            )
    except Exception as error:  # warcio, and the decoders of a page's own compression, raise many kinds
        yield _Broken(f"broken record ({type(error).__name__})")


def _charset(parameters: str) -> str:
    for part in parameters.split(";"):
        name, _, value = part.strip().partition("=")
        if name.lower() == "charset":
            return value.strip("\"' ")
    return ""


def _gzip_members(path: Path) -> Iterator[bytes | _Broken]:
    """Yield every gzip member unpacked; after damaged ones, go on at the next that can be read."""
    with path.open("rb") as stream:
        waiting, damaged = b"", False
        while True:
            waiting = waiting or stream.read(CHUNK)
            if not waiting:
                return
            member, rest, consumed = _unpack(waiting, stream, path)
            if member is not None:
                damaged = False
                yield member
                waiting = rest
                continue
            if not damaged:  # one count per damaged place, however many false starts lie in it
                yield _Broken("broken gzip member" if rest or consumed else "truncated record")
            damaged = True
            waiting = _next_start(rest, stream)


def _unpack(waiting: bytes, stream: Any, path: Path) -> tuple[bytes | None, bytes, bytes]:
    """Return (the member, what follows it, ""), or (None, all bytes after the first, them) where it is damaged."""
    unpacker = zlib.decompressobj(wbits=31)
    read, parts, size = [waiting], [], 0
    piece = waiting
    try:
        while True:
            parts.append(unpacker.decompress(piece, LARGEST_MEMBER))
            size += len(parts[-1])
            if size >= LARGEST_MEMBER:
                raise DataError(
                    f"{path}: a gzip member unpacks to more than {LARGEST_MEMBER >> 20} MiB; in an archive every "
                    "record is a member of its own. Unpack the file, or run `warcio recompress` on it."
                )
            if unpacker.eof:
                return b"".join(parts), unpacker.unused_data, b""
            piece = stream.read(CHUNK)
            if not piece:  # the end of the file within a member
                return None, b"", b""
            read.append(piece)
    except zlib.error:
        everything = b"".join(read)
        return None, everything[1:], everything


def _next_start(waiting: bytes, stream: Any) -> bytes:
    """Return the bytes from the next gzip header on, or none at the end of the file."""
    while True:
        found = waiting.find(GZIP_START)
        if found >= 0:
            return waiting[found:]
        tail = waiting[-(len(GZIP_START) - 1) :]
        more = stream.read(CHUNK)
        if not more:
            return b""
        waiting = tail + more


def _plain_records(path: Path) -> Iterator[bytes | _Broken]:
    """Yield the records of an archive that is not compressed, cut where a header says that the next one starts."""
    with open_bytes(path) as stream:
        waiting = b""
        while True:
            if len(waiting) < LONGEST_HEADER:
                waiting += stream.read(CHUNK)
            if not waiting:
                return
            length = _record_length(waiting)
            if length is None:
                yield _Broken("broken record")
                found = waiting.find(b"\n" + RECORD_START, 1)
                while found < 0:
                    more = stream.read(CHUNK)
                    if not more:
                        return
                    waiting = waiting[-len(RECORD_START) :] + more
                    found = waiting.find(b"\n" + RECORD_START)
                waiting = waiting[found + 1 :]
                continue
            while len(waiting) < length:
                more = stream.read(CHUNK)
                if not more:
                    break
                waiting += more
            yield waiting[:length]
            waiting = waiting[length:].lstrip(b"\r\n")


def _record_length(waiting: bytes) -> int | None:
    """Return how long the record at the start is, its header included, or None where there is no header."""
    end = waiting.find(b"\r\n\r\n")
    if not waiting.startswith(RECORD_START) or end < 0:
        return None
    for line in waiting[:end].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return end + 4 + int(value)
    return None
