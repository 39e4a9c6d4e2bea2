"""What tests of text corpora share: reading paths, and files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lmrl.corpus import CorpusReport, CorpusSettings, Document, find_sources, read_documents


@pytest.fixture
def read() -> Callable[..., tuple[list[Document], CorpusReport]]:
    """Return a function that reads paths and returns the documents and the report."""

    def read_paths(*paths: object, **settings: object) -> tuple[list[Document], CorpusReport]:
        corpus = CorpusSettings(paths=[str(path) for path in paths], **settings)
        report = CorpusReport()
        return list(read_documents(find_sources(corpus.paths), corpus, report)), report

    return read_paths


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes texts as JSON lines."""

    def write(texts: Sequence[str], name: str = "texts.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write
