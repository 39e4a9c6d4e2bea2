"""Packed token files: documents one after the other as 16- or 32-bit ids, with the place where each ends.

A folder holds ``manifest.json`` and, for each split, shards: ``train-00000.tokens`` (ids, little endian) and
``train-00000.documents`` (pairs of 64-bit numbers: where a document ends in the shard, and the UTF-8 bytes of its
text). Shards are written as documents come and read through memory maps, so neither side holds the corpus in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lmrl.errors import DataError

MANIFEST = "manifest.json"
VERSION = 1
SPLITS = ("train", "held_out")


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """Return the smallest type that holds every id."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


class _SplitWriter:
    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self.folder, self.name, self.dtype, self.shard_tokens = folder, name, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = []
        self.token_digest, self.index_digest = hashlib.sha256(), hashlib.sha256()
        self.tokens: BinaryIO | None = None
        self.index: BinaryIO | None = None

    def add(self, rows: Sequence[Sequence[int]], sizes: Sequence[int]) -> None:
        lengths = [len(row) for row in rows]
        place = 0
        while place < len(rows):
            if self.tokens is None or self.shards[-1]["tokens"] >= self.shard_tokens:
                self._next()
            assert self.tokens is not None and self.index is not None
            shard = self.shards[-1]
            ends = shard["tokens"] + np.cumsum(lengths[place:])
            # Up to the document that fills the shard: one document is never cut.
            stop = place + min(int(np.searchsorted(ends, self.shard_tokens)) + 1, len(ends))
            ends = ends[: stop - place]
            pairs = np.stack([ends, np.asarray(sizes[place:stop])], 1).astype("<i8").tobytes()
            count = int(ends[-1]) - shard["tokens"]
            ids = np.fromiter(chain.from_iterable(rows[place:stop]), self.dtype, count).tobytes()
            for stream, content in ((self.tokens, ids), (self.index, pairs)):
                stream.write(content)
            self.token_digest.update(ids)
            self.index_digest.update(np.diff(ends, prepend=shard["tokens"]).astype("<i8").tobytes())
            shard["tokens"] = int(ends[-1])
            shard["documents"] += stop - place
            shard["bytes"] += int(sum(sizes[place:stop]))
            place = stop

    def _next(self) -> None:
        self.close()
        stem = self.folder / f"{self.name}-{len(self.shards):05d}"
        self.tokens = stem.with_suffix(".tokens").open("wb", buffering=1 << 20)
        self.index = stem.with_suffix(".documents").open("wb", buffering=1 << 20)
        self.shards.append({"name": stem.name, "tokens": 0, "documents": 0, "bytes": 0})

    def fingerprint(self) -> str:
        """Return a hash of all ids and all documents' lengths, whatever the shards and the batches were."""
        return hashlib.sha256(self.token_digest.digest() + self.index_digest.digest()).hexdigest()

    def close(self) -> None:
        for stream in (self.tokens, self.index):
            if stream is not None:
                stream.close()


class TokenWriter:
    """Writes a folder of token files; without ``finish`` it has no manifest and nobody reads it."""

    def __init__(self, folder: Path, vocabulary_size: int, shard_tokens: int = 1 << 27) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.vocabulary_size = folder, vocabulary_size
        self.dtype = token_dtype(vocabulary_size)
        self.splits = {name: _SplitWriter(folder, name, self.dtype, shard_tokens) for name in SPLITS}

    def add(self, split: str, rows: Sequence[Sequence[int]], sizes: Sequence[int]) -> None:
        """Append documents, each a row of ids closed by the end token, with the bytes of its text."""
        self.splits[split].add(rows, sizes)

    def finish(self, description: Mapping[str, Any]) -> None:
        """Close the shards and write the manifest, with what ``description`` adds."""
        for writer in self.splits.values():
            writer.close()
        content = {
            "version": VERSION,
            "dtype": self.dtype.str,
            "vocabulary_size": self.vocabulary_size,
            "splits": {name: {"shards": w.shards, "sha256": w.fingerprint()} for name, w in self.splits.items()},
            **description,
        }
        (self.folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class TokenFiles:
    """A folder of token files, opened for reading."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> TokenFiles:
        """Open a folder; raises ``DataError`` when it is not whole."""
        file = folder / MANIFEST
        if not file.exists():
            raise DataError(f"{folder} holds no {MANIFEST}; expected a folder of packed tokens.")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{file} is not valid JSON ({error.msg}); remove {folder} to pack anew.") from error
        if manifest.get("version") != VERSION:
            raise DataError(f"{file} has version {manifest.get('version')}; expected {VERSION}. Pack the corpus anew.")
        return cls(folder, manifest)

    def split(self, name: str) -> TokenStream:
        """Return the documents of "train" or "held_out"."""
        return TokenStream(self.folder, self.manifest["splits"][name]["shards"], np.dtype(self.manifest["dtype"]))

    def fingerprint(self) -> str:
        """Return a hash of every token and every document boundary."""
        parts = [self.manifest["splits"][name]["sha256"] for name in SPLITS]
        return hashlib.sha256("".join([*parts, self.manifest["dtype"]]).encode()).hexdigest()


class TokenStream:
    """The documents of one split as one row of tokens, memory-mapped."""

    def __init__(self, folder: Path, shards: Sequence[Mapping[str, Any]], dtype: np.dtype[Any]) -> None:
        self._shards, self._documents = [], []
        for shard in shards:
            stem = folder / shard["name"]
            self._shards.append(_mapped(stem.with_suffix(".tokens"), dtype, shard["tokens"]))
            pairs = _mapped(stem.with_suffix(".documents"), np.dtype("<i8"), 2 * shard["documents"])
            self._documents.append(pairs.reshape(-1, 2))
        self._token_starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self._document_starts = np.cumsum([0, *(len(pairs) for pairs in self._documents)])

    def __len__(self) -> int:
        return int(self._token_starts[-1])

    @property
    def documents(self) -> int:
        """Number of documents."""
        return int(self._document_starts[-1])

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all documents' texts."""
        return sum(int(pairs[:, 1].sum()) for pairs in self._documents)

    def read(self, start: int, stop: int) -> Any:
        """Return the tokens from ``start`` up to ``stop``, across documents and shards, as int64."""
        first = int(np.searchsorted(self._token_starts, start, "right")) - 1
        parts = []
        for index in range(first, len(self._shards)):
            offset = int(self._token_starts[index])
            if offset >= stop:
                break
            parts.append(self._shards[index][max(start - offset, 0) : stop - offset])
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def ends(self, start: int, stop: int) -> Any:
        """Return where documents end in (start, stop], counted from ``start``: one past each end token."""
        found = []
        for pairs, offset in zip(self._documents, self._token_starts[:-1], strict=True):
            column = pairs[:, 0]
            first = np.searchsorted(column, start - offset, "right")
            last = np.searchsorted(column, stop - offset, "right")
            found.append(column[first:last] + (offset - start))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def document(self, number: int) -> tuple[Any, int]:
        """Return a document's tokens and the bytes of its text."""
        index = int(np.searchsorted(self._document_starts, number, "right")) - 1
        pairs, place = self._documents[index], number - int(self._document_starts[index])
        start = int(pairs[place - 1, 0]) if place else 0
        return self._shards[index][start : int(pairs[place, 0])].astype(np.int64), int(pairs[place, 1])


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> Any:
    expected = count * dtype.itemsize
    found = path.stat().st_size if path.exists() else -1
    if found != expected:
        what = "is missing" if found < 0 else f"has {found} bytes"
        raise DataError(f"{path} {what}; expected {expected} bytes. Remove {path.parent} to pack the corpus anew.")
    return np.memmap(path, dtype, "r") if count else np.zeros(0, dtype)
