"""Files as they are stored, gzip and zstandard undone: streams of bytes that never end early without an error."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from lmrl.errors import DataError

COMPRESSED = (".gz", ".zst")
"""Endings that say how a file is compressed."""
CHUNK = 1 << 20


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed by its ending (.gz, .zst); the stream is read line by line or whole.

    Reading raises ``EOFError`` (or gzip's own errors) where the compressed data end early or are damaged. Raises
    ``DataError`` when a .zst file comes and ``zstandard`` is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if suffix == ".zst":
        return io.BufferedReader(_ZstandardStream(path), CHUNK)
    return path.open("rb")


class _ZstandardStream(io.RawIOBase):
    """Frames of zstandard one after the other. Its own reader takes a file that is cut short for a whole one."""

    def __init__(self, path: Path) -> None:
        self._zstandard = _zstandard(path)
        self._file = path.open("rb")
        self._chunks = self._decompressed()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = chunk
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
            raise EOFError("the last frame has no end")


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(
            f"{path} is compressed, and the package zstandard, which reads it, is not installed: "
            'pip install "lmrl[text]".'
        ) from error
    return zstandard
