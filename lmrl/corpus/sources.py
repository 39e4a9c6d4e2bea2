"""Sources of documents: files, folders, globs and ids on the hub, told apart and read one document at a time."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmrl.corpus import archives, plain, tables
from lmrl.corpus.documents import Document
from lmrl.corpus.report import CorpusReport
from lmrl.corpus.settings import CorpusSettings
from lmrl.data.layouts.reading import SURROGATES
from lmrl.data.loading.compressed import kind_of
from lmrl.data.loading.files import refuse_missing_file
from lmrl.errors import DataError, SettingsError

Reader = Callable[[Path, CorpusSettings, CorpusReport], Iterator[Document]]

READERS: dict[str, Reader] = {
    ".txt": plain.text_documents,
    ".json": plain.json_file,
    ".jsonl": plain.json_lines,
    ".ndjson": plain.json_lines,
    ".csv": tables.small_table,
    ".parquet": tables.parquet_documents,
    ".arrow": tables.small_table,
    ".html": archives.html_documents,
    ".htm": archives.html_documents,
    ".warc": archives.archive_documents,
    ".wet": archives.archive_documents,
}
"""Readers of each kind of file, by its suffix without that of a compression."""
WHOLE_HASH = 1 << 26
"""Bytes up to which a file's fingerprint is that of all its content."""
SAVED_FOLDER = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class Source:
    """A file, a folder saved by ``datasets``, or an id on the hub."""

    name: str
    path: Path | None
    is_table_folder: bool = False

    @property
    def is_whole_text(self) -> bool:
        """True for a .txt file."""
        return self.path is not None and kind_of(self.path) == ".txt"

    def documents(self, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
        """Yield its documents; what holds none is counted in ``report``. Raises ``DataError``."""
        if self.path is None:
            return tables.hub_documents(self.name, settings, report)
        if self.is_table_folder:
            return tables.saved_folder(self.path, settings, report)
        return READERS[kind_of(self.path)](self.path, settings, report)

    def fingerprint(self, settings: CorpusSettings) -> str:
        """Return a hash of the content; of a large file that of its size, its ends and its time."""
        digest = hashlib.sha256()
        if self.path is None:
            digest.update(repr((self.name, settings.subset, settings.split, settings.revision)).encode())
        elif self.is_table_folder:
            for path in sorted(self.path.rglob("*")):
                if path.is_file():
                    digest.update(_file_digest(path))
        else:
            digest.update(_file_digest(self.path))
        return digest.hexdigest()


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Return the sources that paths, folders, globs and hub ids name, each file once.

    Raises ``SettingsError`` when nothing is named and ``DataError`` when a name leads nowhere.
    """
    if not paths:
        raise SettingsError("corpus.paths is empty; expected files, folders, globs or ids on the hub")
    found: dict[str, Source] = {}
    for name in paths:
        for source in _named(name):
            found.setdefault(source.name if source.path is None else str(source.path.resolve()), source)
    return list(found.values())


def read_documents(sources: Sequence[Source], settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the documents of all sources in turn, at most ``settings.limit``, and count them."""
    count = 0
    for source in sources:
        before = report.documents_in
        for document in source.documents(settings, report):
            report.read(document)
            yield _encodable(document, report)
            count += 1
            if count == settings.limit:
                report.notes.append(f"reading stopped at corpus.limit, {count} documents")
                return
        if report.documents_in == before:
            report.skip("read", "empty file", source.name, source.name)


def _encodable(document: Document, report: CorpusReport) -> Document:
    """Return the document without half characters: JSON can hold one half of a surrogate pair, UTF-8 cannot."""
    if document.text.isascii() or not SURROGATES.search(document.text):
        return document
    report.change("read", "half characters replaced", document, 0)
    return replace(document, text=SURROGATES.sub("\ufffd", document.text))


def _named(name: str) -> list[Source]:
    path = Path(name).expanduser()
    if path.is_dir():
        if any((path / file).exists() for file in SAVED_FOLDER):
            return [Source(str(path), path, is_table_folder=True)]
        files = sorted(item for item in path.rglob("*") if item.is_file() and kind_of(item) in READERS)
        if not files:
            raise DataError(f"{path} holds no file of a kind that is read; expected {_kinds()}.")
        return [Source(str(file), file) for file in files]
    if path.exists():
        if kind_of(path) not in READERS:
            raise DataError(f"{path}: unknown kind of file; expected {_kinds()}.")
        return [Source(str(path), path)]
    if glob.has_magic(name):
        matches = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not matches:
            raise DataError(f"nothing matches {name}; expected a glob such as corpus/**/*.jsonl.gz.")
        return [source for match in matches for source in _named(match)]
    refuse_missing_file(name, path, READERS, "Expected a file, a folder, a glob, or an id on the hub.")
    return [Source(name, None)]


def _kinds() -> str:
    return ", ".join(READERS) + ", those of text and archives also with .gz or .zst"


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if size <= WHOLE_HASH:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
            else:
                digest.update(repr((size, path.stat().st_mtime_ns)).encode())
                digest.update(stream.read(1 << 20))
                stream.seek(-(1 << 20), 2)
                digest.update(stream.read())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    return digest.digest()
