"""Bytes and lines of a file that may be compressed (.gz, .zst), with errors that name the file and the line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lmrl.data.text.documents import extra
from lmrl.errors import DataError

COMPRESSED = (".gz", ".zst")
CHUNK = 1 << 20


def kind_of(path: Path) -> str:
    """Return the suffix that says what is in a file, that of a compression left out: ``.jsonl`` of a.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed by its suffix. Damaged compression is a ``DataError`` while it is read."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.open(path, "rb") as unpacked:
                yield unpacked  # type: ignore[misc]
        elif suffix == ".zst":
            with path.open("rb") as raw:
                yield io.BufferedReader(_ZstdStream(raw, path), CHUNK)
        else:
            with path.open("rb") as stream:
                yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: broken gzip data ({error}); the file is cut short or damaged, fetch it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line with its number, from 1. Lines end at a newline and nowhere else (U+2028 is text)."""
    number = 0
    try:
        with open_bytes(path) as stream:
            for number, raw in enumerate(stream, start=1):
                yield number, decode(raw, path, number).rstrip("\r\n")
    except DataError as error:
        if "line" in str(error) or not number:
            raise
        raise DataError(f"{path}, after line {number}: {str(error).removeprefix(f'{path}: ')}") from error


def decode(raw: bytes, path: Path, line: int) -> str:
    """Return bytes as text. Raises ``DataError`` where they are not UTF-8; a mark at the file's start is taken off."""
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {line}: byte {column} of the line is not UTF-8 ({error.reason}); convert the file to UTF-8."
        ) from error


class _ZstdStream(io.RawIOBase):
    """Zstandard frames, unpacked. The library's own reader takes a file that is cut short for a whole one."""

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        self.raw, self.path = raw, path
        self.zstandard = extra("zstandard", f"{path}: reading .zst")
        self.unpacker: Any = None
        self.waiting = b""
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            if not self.waiting:
                self.waiting = self.raw.read(CHUNK)
            if not self.waiting:
                if self.unpacker is not None:
                    raise DataError(f"{self.path}: broken zstandard data (it ends within a frame); fetch it again.")
                return 0
            self.unpacker = self.unpacker or self.zstandard.ZstdDecompressor().decompressobj()
            try:
                self.ready = memoryview(self.unpacker.decompress(self.waiting))
            except self.zstandard.ZstdError as error:
                raise DataError(f"{self.path}: broken zstandard data ({error}); fetch it again.") from error
            self.waiting = self.unpacker.unused_data
            if self.unpacker.eof:
                self.unpacker = None
        size = min(len(buffer), len(self.ready))
        buffer[:size] = self.ready[:size]
        self.ready = self.ready[size:]
        return size
