"""Packed token files hold what was put in, document by document, and blocks of them are a function of the step."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.corpus import TokenDataset, TokenFiles, TokenWriter
from lmrl.corpus.batches import Shuffle
from lmrl.corpus.tokens import token_dtype
from lmrl.errors import DataError

EOS = 1


def packed(folder, documents, *, shard_tokens=10, vocabulary=300, batches=1):
    writer = TokenWriter(folder, vocabulary, shard_tokens)
    for part in np.array_split(np.arange(len(documents)), batches):
        writer.add("train", [documents[i] for i in part], [7 * len(documents[i]) for i in part])
    writer.finish({"eos_id": EOS})
    return TokenFiles.open(folder)


def documents_of(lengths):
    counter = iter(range(2, 10**6))
    return [[next(counter) % 250 + 2 for _ in range(length)] + [EOS] for length in lengths]


LENGTHS = st.lists(st.integers(0, 25), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 60), st.integers(1, 4), st.data())
def test_files_are_the_naive_concatenation(tmp_path_factory, lengths, shard_tokens, batches, data):
    documents = documents_of(lengths)
    naive = np.concatenate(documents)
    folder = tmp_path_factory.mktemp("tokens")
    stream = packed(folder, documents, shard_tokens=shard_tokens, batches=batches).split("train")
    assert len(stream) == len(naive) and stream.documents == len(documents)
    assert stream.text_bytes == 7 * len(naive)
    for number, document in enumerate(documents):
        tokens, size = stream.document(number)
        assert tokens.tolist() == document and size == 7 * len(document)
    start = data.draw(st.integers(0, len(naive)))
    stop = data.draw(st.integers(start, len(naive)))
    assert stream.read(start, stop).tolist() == naive[start:stop].tolist()
    ends = np.cumsum([len(document) for document in documents])
    assert stream.ends(start, stop).tolist() == [end - start for end in ends if start < end <= stop]


def test_shards_and_batches_change_no_fingerprint_but_boundaries_do(tmp_path):
    documents = documents_of([3, 5, 8, 2])
    one = packed(tmp_path / "a", documents, shard_tokens=1000).fingerprint()
    assert one == packed(tmp_path / "b", documents, shard_tokens=4, batches=3).fingerprint()
    moved = [[*documents[0], documents[1][0]], documents[1][1:], *documents[2:]]
    assert np.concatenate(moved).tolist() == np.concatenate(documents).tolist()
    assert packed(tmp_path / "c", moved).fingerprint() != one


@pytest.mark.parametrize(("vocabulary", "size"), [(300, 2), (65536, 2), (65537, 4)])
def test_ids_take_two_bytes_where_they_fit(tmp_path, vocabulary, size):
    assert token_dtype(vocabulary).itemsize == size
    documents = [[vocabulary - 1, EOS], [2, EOS]]
    assert packed(tmp_path, documents, vocabulary=vocabulary).split("train").read(0, 1).tolist() == [vocabulary - 1]


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        TokenFiles.open(tmp_path)
    files = packed(tmp_path, documents_of([30, 30]))
    shard = tmp_path / "train-00001.tokens"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"train-00001\.tokens has 59 bytes; expected 62"):
        files.split("train")
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        files.split("train")
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 0}), encoding="utf-8")
    with pytest.raises(DataError, match="has version 0"):
        TokenFiles.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        TokenFiles.open(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 5))
def test_a_shuffle_is_a_permutation(size, seed):
    assert sorted(Shuffle(size, seed)[place] for place in range(size)) == list(range(size))


def test_a_shuffle_has_no_obvious_order_and_depends_on_the_seed():
    first, second = ([Shuffle(1000, seed)[place] for place in range(1000)] for seed in (0, 1))
    assert abs(np.corrcoef(first, range(1000))[0, 1]) < 0.12 and abs(np.corrcoef(first, second)[0, 1]) < 0.12
    steps = np.diff(first)
    assert len(np.unique(steps)) > 500
    assert 0 <= Shuffle(10**12, 0)[10**12 - 1] < 10**12


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_mapped_batches_are_those_of_the_tokens_in_memory(tmp_path_factory, context, rows, ranks, seed):
    documents = documents_of([13, 1, 0, 29, 44, 8, 120, 3])
    tokens = np.concatenate(documents)
    stream = packed(tmp_path_factory.mktemp("tokens"), documents, shard_tokens=30).split("train")
    dataset = TokenDataset(stream, context, seed)
    per_epoch = dataset.blocks
    starts = [dataset.start(number) for number in range(2 * per_epoch)]
    for epoch in (starts[:per_epoch], starts[per_epoch:]):  # every block once, side by side, within the stream
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + per_epoch * context, context))
        assert min(epoch) >= 0 and max(epoch) + context < len(tokens)
    together = np.concatenate([dataset.rows(3, rank, ranks, rows).tokens for rank in range(ranks)])
    first = 2 * ranks * rows
    wanted = [tokens[s : s + context + 1] for s in (dataset.start(first + i) for i in range(ranks * rows))]
    assert together.tolist() == np.stack(wanted).tolist()
    fresh = TokenDataset(stream, context, seed)  # a resumed run: nothing was drawn before
    assert fresh.rows(3, 0, ranks, rows).tokens.tolist() == together[:rows].tolist()


def test_every_token_of_a_small_corpus_is_seen_over_epochs(tmp_path):
    stream = packed(tmp_path, documents_of([50])).split("train")
    dataset = TokenDataset(stream, 16, 0)
    seen = {start + offset for start in map(dataset.start, range(200)) for offset in range(1, 17)}
    assert seen == set(range(1, len(stream)))


def test_positions_begin_anew_with_every_document(tmp_path):
    stream = packed(tmp_path, documents_of([2, 0, 3, 30])).split("train")  # xx. . xxx. x...
    dataset = TokenDataset(stream, 10, 0, cross_documents=False)
    assert dataset._positions(0).tolist() == [0, 1, 0, 0, 1, 2, 3, 0, 1, 2]
    assert dataset._positions(5).tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 6, 7]
    rows = dataset.rows(1, 0, 1, 3)
    assert rows.positions.shape == (3, 10) and TokenDataset(stream, 10, 0).rows(1, 0, 1, 3).positions is None


def test_a_corpus_shorter_than_a_block_is_refused(tmp_path):
    stream = packed(tmp_path, documents_of([9])).split("train")
    assert TokenDataset(stream, 9, 0).rows(5, 0, 1, 2).tokens.shape == (2, 10)
    with pytest.raises(DataError, match=r"has 10 tokens, too few for one block of 10.*model\.context_length"):
        TokenDataset(stream, 10, 0)
