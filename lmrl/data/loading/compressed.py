"""Files as they are stored, decompressed (gzip, bzip2, xz, zstandard): bytes and lines.

A file that ends early is an error, never a shorter file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from lmrl.errors import DataError

COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
"""Endings that say how a file is compressed, with the name of the format."""
CHUNK = 1 << 20
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)  # gzip.BadGzipFile is an OSError


def kind_of(path: Path) -> str:
    """Return the suffix that says what is in a file, that of a compression left out: ``.jsonl`` of a.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed by its ending (.gz, .bz2, .xz, .zst).

    What cannot be read, and compressed data that end early or are damaged, is a ``DataError`` while it is read.
    """
    try:
        with _unpacked(path) as stream:
            yield stream
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line with its number, from 1. Lines end at a newline and nowhere else (U+2028 is text)."""
    number = 0
    try:
        with _unpacked(path) as stream:
            for number, raw in enumerate(stream, start=1):
                yield number, decode(raw, path, number).rstrip("\r\n")
    except _DAMAGE as error:
        raise _unreadable(path, error, f" after line {number}") from error


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


def _unpacked(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if suffix == ".bz2":
        return cast("IO[bytes]", bz2.open(path, "rb"))
    if suffix == ".xz":
        return cast("IO[bytes]", lzma.open(path, "rb"))
    if suffix == ".zst":
        zstandard = _zstandard(path)
        return io.BufferedReader(_ZstandardStream(zstandard, path.open("rb")), CHUNK)
    return path.open("rb")


def _unreadable(path: Path, error: Exception, place: str = "") -> DataError:
    if isinstance(error, OSError) and error.errno is not None:  # damaged gzip and bzip2 data have no number
        return DataError(f"{path} cannot be read{place} ({error.strerror or error}).")
    kind = COMPRESSED.get(path.suffix.lower(), "compressed")
    return DataError(f"{path}: broken {kind} data{place} ({error}); the file is cut short or damaged, fetch it again.")


class _ZstandardStream(io.RawIOBase):
    """Frames of zstandard one after the other. Its own reader takes a file that is cut short for a whole one."""

    def __init__(self, zstandard: Any, file: IO[bytes]) -> None:
        # Nothing here can fail: io closes also a stream whose construction failed.
        self._zstandard = zstandard
        self._file = file
        self._chunks = self._decompressed()
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def _decompressed(self) -> Iterator[bytes]:
        # The largest window that zstd --long=31 writes.
        decompressor = self._zstandard.ZstdDecompressor(max_window_size=1 << 31)
        frame, fed = decompressor.decompressobj(), False
        try:
            while data := self._file.read(CHUNK):
                while data:
                    if frame.eof:
                        frame, fed = decompressor.decompressobj(), False
                    yield frame.decompress(data)
                    data, fed = frame.unused_data if frame.eof else b"", True
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        if fed and not frame.eof:
            raise EOFError("it ends within a frame")


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(
            f"{path} is compressed, and the package zstandard, which reads it, is not installed: "
            'pip install "lmrl[text]".'
        ) from error
    return zstandard
