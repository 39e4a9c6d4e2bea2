"""Documents out of tables: Parquet by row groups, Arrow and CSV files, folders saved by datasets, and the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmrl.corpus.documents import Document
from lmrl.corpus.plain import RowReader
from lmrl.corpus.report import CorpusReport
from lmrl.corpus.settings import CorpusSettings
from lmrl.data.loading.files import read_rows
from lmrl.errors import DataError, unknown

ROWS = 1024


def parquet_documents(path: Path, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the text column of a Parquet file, a batch of rows in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    reader = RowReader(str(path), settings.column, report)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if settings.column not in names:
                raise DataError(f"{path}: {unknown('column', settings.column, names)}")
            columns = [name for name in (settings.column, "url") if name in names]
            for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield from reader.read(row, number)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read after row {number} ({str(error).splitlines()[0]}).") from error


def small_table(path: Path, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the text column of a CSV or Arrow file, which is read whole."""
    reader = RowReader(str(path), settings.column, report)
    for number, row in enumerate(read_rows(path), start=1):
        yield from reader.read(row, number)


def saved_folder(path: Path, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the text column of a folder that ``datasets`` saved; rows stay on disk."""
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(str(path))
    if isinstance(found, DatasetDict):
        if settings.split not in found:
            raise DataError(f"{path}: {unknown('split', settings.split, found)}")
        found = found[settings.split]
    yield from _rows(found, str(path), settings, report)


def hub_documents(name: str, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    """Yield the text column of a data set on the hub, streamed."""
    from datasets import load_dataset

    try:
        found = load_dataset(
            name,
            settings.subset or None,
            split=settings.split,
            revision=settings.revision or None,
            streaming=True,
        )
        yield from _rows(found, name, settings, report)
    except DataError:
        raise
    except Exception as error:  # datasets and the hub client raise many kinds; each means that there are no rows
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise DataError(
            f"{name} is neither a file here nor a data set on the hub that can be reached (split {settings.split!r}; "
            f"{type(error).__name__}: {reason})"
        ) from error


def _rows(found: Any, name: str, settings: CorpusSettings, report: CorpusReport) -> Iterator[Document]:
    reader = RowReader(name, settings.column, report)
    for number, row in enumerate(found, start=1):
        yield from reader.read(row, number)
