"""From sources to a packed corpus: equal to doing it naively, in one piece or not at all, and found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lmrl.corpus import (
    CleanSettings,
    CorpusSettings,
    DocumentEncoder,
    TokenizerSettings,
    open_corpus,
    prepare_corpus,
)
from lmrl.corpus import prepare as module
from lmrl.errors import DataError

WORDS = TokenizerSettings(kind="words", min_frequency=1)
BPE = TokenizerSettings(vocabulary_size=300)


def texts(count):
    return [f"Story {number} of the old mill.\n\tIt has {number * 7} lines — é." for number in range(count)]


def rows(stream):
    return [stream.document(number)[0].tolist() for number in range(stream.documents)]


def test_the_packed_corpus_is_the_naive_encoding(tmp_path, write_lines):
    given = [*texts(300), texts(1)[0], "  "]
    corpus = CorpusSettings(paths=[str(write_lines(given))], folder=str(tmp_path / "c"), held_out=0.2, shard_tokens=500)
    found = prepare_corpus(corpus, None, BPE, progress=False)
    assert (found.report.documents_in, found.report.documents_out) == (302, 300)
    encoder = DocumentEncoder(found.tokenizer_folder)
    packed, kept = {}, []
    for split in ("train", "held_out"):
        stream = found.tokens.split(split)
        packed[split] = rows(stream)
        lines = (tmp_path / "c" / "documents" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        split_texts = [json.loads(line)["text"] for line in lines]
        assert packed[split] == [encoder.encode([text])[0] for text in split_texts]
        assert stream.text_bytes == sum(len(text.encode()) for text in split_texts)
        assert [encoder.decode(row) for row in packed[split]] == split_texts
        kept += split_texts
    assert sorted(kept) == sorted(texts(300)) and 30 < len(packed["held_out"]) < 90
    manifest = found.tokens.manifest
    assert manifest["lossless"] and len(manifest["splits"]["train"]["shards"]) > 3
    assert manifest["vocabulary_size"] == encoder.vocabulary_size <= 300


def test_a_documents_side_does_not_depend_on_the_others(tmp_path, write_lines):
    sides = []
    for name, given in (("a", texts(200)), ("b", texts(200)[::-2])):
        corpus = CorpusSettings(
            paths=[str(write_lines(given, f"{name}.jsonl"))], folder=str(tmp_path / name), held_out=0.3
        )
        prepare_corpus(corpus, None, WORDS, progress=False)
        held_out = (tmp_path / name / "documents" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
        sides.append({json.loads(line)["text"] for line in held_out})
    assert sides[1] == sides[0] & set(texts(200)[::-2])


def test_the_end_of_a_whole_text_is_held_out(tmp_path, shared):
    path = shared / "data" / "text" / "tinyshakespeare.txt"
    corpus = CorpusSettings(paths=[str(path)], folder=str(tmp_path / "c"), held_out=0.1)
    found = prepare_corpus(corpus, None, TokenizerSettings(kind="bytes"), progress=False)
    text = path.read_text(encoding="utf-8")
    encoder = DocumentEncoder(found.tokenizer_folder)
    train, held_out = (rows(found.tokens.split(name)) for name in ("train", "held_out"))
    cut = int(0.9 * len(text))
    assert [encoder.decode(row) for row in train] == [text[:cut]]
    assert [encoder.decode(row) for row in held_out] == [text[cut:]]


def test_held_out_files_come_first_so_that_their_copies_leave_the_training_set(tmp_path, write_lines):
    held = write_lines(texts(5), "held.jsonl")
    corpus = CorpusSettings(paths=[str(write_lines(texts(20)))], held_out_paths=[str(held)], folder=str(tmp_path / "c"))
    found = prepare_corpus(corpus, None, WORDS, progress=False)
    assert (found.tokens.split("train").documents, found.tokens.split("held_out").documents) == (15, 5)
    assert found.report.dropped["exact duplicates"]["equal to an earlier document"].documents == 5


def test_a_prepared_corpus_is_found_and_another_one_refused(tmp_path, write_lines, monkeypatch):
    path = write_lines(texts(100))
    corpus = CorpusSettings(paths=[str(path)], folder=str(tmp_path / "c"), held_out=0.1)
    first = prepare_corpus(corpus, None, WORDS, progress=False)
    stamp = (tmp_path / "c" / "tokens" / "manifest.json").stat().st_mtime_ns
    again = prepare_corpus(corpus, None, WORDS, progress=False)
    assert again.tokens.fingerprint() == first.tokens.fingerprint() and again.report == first.report
    assert (tmp_path / "c" / "tokens" / "manifest.json").stat().st_mtime_ns == stamp
    for changed in (
        (CorpusSettings(paths=[str(path)], folder=str(tmp_path / "c"), held_out=0.2), None),
        (corpus, CleanSettings(exact_duplicates=False)),
    ):
        with pytest.raises(DataError, match="made of other sources or with other settings"):
            prepare_corpus(*changed, WORDS, progress=False)
    write_lines(texts(101))
    with pytest.raises(DataError, match="made of other sources"):
        prepare_corpus(corpus, None, WORDS, progress=False)
    monkeypatch.chdir(tmp_path)
    unnamed = prepare_corpus(CorpusSettings(paths=[str(path)], held_out=0.1), None, WORDS, progress=False)
    assert unnamed.folder.parts[:2] == ("runs", "corpora")


@pytest.mark.parametrize("broken_step", ["train_tokenizer", "TokenWriter"])
def test_what_breaks_off_leaves_no_half_step_and_goes_on(tmp_path, write_lines, monkeypatch, broken_step):
    corpus = CorpusSettings(paths=[str(write_lines(texts(100)))], folder=str(tmp_path / "c"), held_out=0.1)
    with monkeypatch.context() as patch:

        def stop(*arguments: object, **named: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, broken_step, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(corpus, None, WORDS, progress=False)
    step = {"train_tokenizer": "tokenizer", "TokenWriter": "tokens"}[broken_step]
    assert not (tmp_path / "c" / step).exists()
    with pytest.raises(DataError, match="holds no finished corpus"):
        open_corpus(tmp_path / "c")
    with monkeypatch.context() as patch:  # the documents are not read again
        patch.setattr(module, "read_documents", stop)
        found = prepare_corpus(corpus, None, WORDS, progress=False)
    whole = prepare_corpus(
        CorpusSettings(paths=corpus.paths, folder=str(tmp_path / "d"), held_out=0.1), None, WORDS, progress=False
    )
    assert found.tokens.fingerprint() == whole.tokens.fingerprint() and found.report == whole.report


SCRIPT = """
import sys
from lmrl.corpus import CleanSettings, CorpusSettings, TokenizerSettings, prepare_corpus
corpus = CorpusSettings(paths=[sys.argv[1]], folder=sys.argv[2], held_out=0.1)
prepare_corpus(corpus, CleanSettings(near_duplicates=True), TokenizerSettings(kind="words"), progress=False)
"""


def test_a_killed_process_is_continued(tmp_path, write_lines):
    pytest.importorskip("datasketch")
    path = write_lines(texts(20_000))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "c")])
    partial = tmp_path / "c" / "documents.partial" / "train.jsonl"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 0):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "c" / "documents").exists()
    write_lines(texts(300))  # the same name, and less of it, so that the test need not wait
    subprocess.run([sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "c")], check=True)
    found = open_corpus(tmp_path / "c")
    assert found.report.documents_in == 300 and not list((tmp_path / "c").glob("*.partial"))


def test_nothing_left_or_nothing_held_out_is_an_error(tmp_path, write_lines):
    corpus = CorpusSettings(paths=[str(write_lines(texts(5)))], folder=str(tmp_path / "c"), held_out=0.5)
    with pytest.raises(DataError, match=r"no document is left.*of 5 read \(quality, too few words: 5\)"):
        prepare_corpus(corpus, CleanSettings(quality=True), WORDS, progress=False)
    assert not (tmp_path / "c").exists()
    corpus = CorpusSettings(paths=[str(write_lines(texts(3)))], folder=str(tmp_path / "d"), held_out=1e-9)
    with pytest.raises(DataError, match=r"corpus\.held_out is 1e-09.*none of 3 documents"):
        prepare_corpus(corpus, None, WORDS, progress=False)
    corpus = CorpusSettings(paths=[str(write_lines(texts(3)))], folder=str(tmp_path / "e"), held_out=0)
    assert prepare_corpus(corpus, None, WORDS, progress=False).tokens.split("held_out").documents == 0


def test_a_tokenizer_that_loses_text_is_noted(tmp_path, write_lines):
    given = [f"known words here and {number} there" for number in range(60)]
    corpus = CorpusSettings(paths=[str(write_lines(given))], folder=str(tmp_path / "c"), held_out=0.3)
    found = prepare_corpus(corpus, None, TokenizerSettings(kind="words", min_frequency=5), progress=False)
    assert not found.tokens.manifest["lossless"]
    assert any("unknown token" in note for note in found.report.notes)
    assert any("no bits per byte" in note for note in found.report.notes)


def test_the_text_may_go_and_the_report_stays(tmp_path, write_lines):
    corpus = CorpusSettings(
        paths=[str(write_lines(texts(50)))], folder=str(tmp_path / "c"), held_out=0.2, keep_text=False
    )
    found = prepare_corpus(corpus, None, WORDS, progress=False)
    assert not list((tmp_path / "c" / "documents").glob("*.jsonl"))
    assert open_corpus(tmp_path / "c").report.documents_in == found.report.documents_in == 50


def test_the_documents_load_in_datasets(tmp_path, write_lines):
    from datasets import load_dataset

    corpus = CorpusSettings(paths=[str(write_lines(texts(50)))], folder=str(tmp_path / "c"), held_out=0.2)
    prepare_corpus(corpus, None, WORDS, progress=False)
    loaded = load_dataset(
        "json", data_files=str(tmp_path / "c" / "documents" / "*.jsonl"), split="train", cache_dir=str(tmp_path / "x")
    )
    assert set(loaded["text"]) == set(texts(50)) and set(loaded.column_names) == {"text", "source", "number"}


def test_real_web_text_from_archives_to_tokens(tmp_path, shared):
    for name in ("warcio", "trafilatura", "datasketch", "py3langid"):
        pytest.importorskip(name)
    folder = shared / "data" / "text"
    names = ("dolma_sample-0000.warc.gz", "whirlwind.warc.gz", "whirlwind.warc.wet.gz", "c4_demo.jsonl")
    corpus = CorpusSettings(paths=[str(folder / name) for name in names], folder=str(tmp_path / "c"), held_out=0.1)
    clean = CleanSettings(near_duplicates=True, quality=True, languages=["en"])
    found = prepare_corpus(corpus, clean, TokenizerSettings(vocabulary_size=1000), progress=False)
    assert found.report.documents_in == 324
    assert found.report.dropped["language"]["language an"].documents == 2
    encoder = DocumentEncoder(found.tokenizer_folder)
    stream = found.tokens.split("train")
    assert np.all([stream.document(number)[0][-1] == encoder.eos_id for number in range(stream.documents)])
    assert stream.text_bytes / len(stream) > 2.5 and found.tokens.manifest["lossless"]
