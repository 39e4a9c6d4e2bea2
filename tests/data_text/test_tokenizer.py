"""Tokenizers, trained and brought: what they write, what survives them, and what cannot be used."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.corpus import DocumentEncoder, TokenizerSettings, bring_tokenizer, train_tokenizer
from lmrl.corpus.tokenizer import PIECE_CHARACTERS, pieces
from lmrl.errors import DataError, ModelError, SettingsError
from lmrl.stories import grammar
from lmrl.text.codec import FastCodec

TEXTS = [grammar.story(random.Random(number), "train").text for number in range(200)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    parent = tmp_path_factory.mktemp("tokenizers")
    for kind, size in (("bpe", 400), ("words", 500), ("bytes", 0)):
        train_tokenizer(TEXTS, TokenizerSettings(kind=kind, vocabulary_size=size or 8192), parent / kind)
    return parent


@pytest.fixture(scope="module")
def encoders(folders):
    return {kind: DocumentEncoder(folders / kind) for kind in ("bpe", "words", "bytes")}


@pytest.mark.parametrize("kind", ["bpe", "words", "bytes"])
def test_a_trained_tokenizer_is_read_by_transformers_and_by_lmrl(folders, encoders, kind):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folders / kind)
    ours = FastCodec(folders / kind / "tokenizer.json")
    encoder = encoders[kind]
    assert (theirs.pad_token, theirs.eos_token, theirs.unk_token) == ("<pad>", "<eos>", "<unk>")
    assert (theirs.pad_token_id, theirs.eos_token_id) == (encoder.pad_id, encoder.eos_id) == (0, 1)
    assert len(theirs) == encoder.vocabulary_size
    for text in TEXTS[:5]:
        (row,) = encoder.encode([text])
        assert theirs(text)["input_ids"] == ours.encode(text) == row[:-1]
        assert theirs.decode(row[:-1]) == ours.decode_batch([row])[0] == text


def test_the_kinds_have_the_sizes_they_were_asked_for(encoders):
    assert encoders["bpe"].vocabulary_size == 400 and encoders["bytes"].vocabulary_size == 259
    assert encoders["words"].vocabulary_size < 500  # the story world has fewer words


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_a_byte_level_tokenizer(encoders, text):
    for kind in ("bpe", "bytes"):
        (row,) = encoders[kind].encode([text])
        assert encoders[kind].decode(row) == text and row[-1] == encoders[kind].eos_id


def test_bytes_are_one_token_each(encoders):
    assert len(encoders["bytes"].encode(["aé€"])[0]) == 1 + 2 + 3 + 1


def test_special_tokens_written_in_a_text_are_text(encoders):
    text = "a<eos>b<pad><unk>"
    for kind in ("bpe", "bytes", "words"):
        (row,) = encoders[kind].encode([text])
        assert encoders[kind].eos_id not in row[:-1] and encoders[kind].pad_id not in row
    assert encoders["bpe"].decode(encoders["bpe"].encode([text])[0]) == text


def test_words_decode_to_proper_english(tmp_path):
    text = "Don't ask: she's well-known, isn't she? (Yes; 9% say so.) \u201cSo!\u201d"
    train_tokenizer([text], TokenizerSettings(kind="words", vocabulary_size=100, min_frequency=1), tmp_path)
    encoder = DocumentEncoder(tmp_path)
    (row,) = encoder.encode([text])
    assert encoder.decode(row) == "Don't ask: she's well-known, isn't she? ( Yes; 9% say so.) \u201c So!\u201d"
    assert encoder.encode([encoder.decode(row)]) == [row]
    assert encoder.unknown_id in encoder.encode(["unseen"])[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["word", " ", "\n", "  ", "it's", "é", "1", ".", "\u201c", "x y", "\t"]), max_size=60))
def test_long_texts_are_cut_where_tokens_end_anyway(encoders, parts):
    from lmrl.corpus import tokenizer as module

    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_CHARACTERS", 5)
        assert "".join(pieces(text)) == text
        cut = {kind: encoder.encode([text, "b"]) for kind, encoder in encoders.items()}
    for kind, encoder in encoders.items():
        assert cut[kind] == encoder.encode([text, "b"])


def test_a_long_real_text_is_cut(shared, encoders):
    text = (shared / "data" / "text" / "grimms_fairy_tales.txt").read_text(encoding="utf-8")
    found = pieces(text)
    assert "".join(found) == text and len(found) == len(text) // PIECE_CHARACTERS + 1
    whole = encoders["bpe"].tokenizer.encode(text, add_special_tokens=False).ids
    assert encoders["bpe"].encode([text]) == [[*whole, encoders["bpe"].eos_id]]


def test_gpt2s_two_files(shared, tmp_path):
    from transformers import AutoTokenizer

    bring_tokenizer(str(shared / "data" / "models" / "gpt2-tokenizer"), TokenizerSettings(path="x"), tmp_path)
    encoder = DocumentEncoder(tmp_path)
    assert (encoder.eos_id, encoder.pad_id, encoder.vocabulary_size, encoder.prefix) == (50256, 50256, 50257, [])
    assert encoder.unknown_id == -1
    text = "Hello world, don't<|endoftext|>panic  \n"
    (row,) = encoder.encode([text])
    assert row[:5] == [15496, 995, 11, 836, 470] and row.count(50256) == 1 and encoder.decode(row) == text
    assert AutoTokenizer.from_pretrained(tmp_path)("Hello world")["input_ids"] == [15496, 995]


def test_a_models_tokenizer_begins_documents_as_its_template_does(shared, tmp_path):
    source = shared / "data" / "models" / "stories260K-llama"
    bring_tokenizer(str(source), TokenizerSettings(path="x"), tmp_path)
    encoder = DocumentEncoder(tmp_path)
    assert (encoder.prefix, encoder.eos_id, encoder.pad_id) == ([1], 2, 0)
    (row,) = encoder.encode(["Once upon a time"])
    assert row[0] == 1 and row[-1] == 2 and encoder.decode(row) == "Once upon a time"
    assert FastCodec(source / "tokenizer.json").encode("Once upon a time") == row[:-1]


def test_a_run_folder_lends_its_tokenizer(folders, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-000001"
    shutil.copytree(folders / "bpe", checkpoint)
    (checkpoint / "config.json").write_text("{}", encoding="utf-8")
    bring_tokenizer(str(tmp_path / "run"), TokenizerSettings(path="x"), tmp_path / "out")
    assert DocumentEncoder(tmp_path / "out").fingerprint() == DocumentEncoder(folders / "bpe").fingerprint()


def test_a_tokenizer_without_an_end_token_needs_its_name(folders, tmp_path):
    shutil.copytree(folders / "bpe", tmp_path / "in")
    (tmp_path / "in" / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    bring_tokenizer(str(tmp_path / "in"), TokenizerSettings(path="x"), tmp_path / "a")
    with pytest.raises(ModelError, match=r"names no eos_token.*tokenizer\.eos_token"):
        DocumentEncoder(tmp_path / "a")
    bring_tokenizer(str(tmp_path / "in" / "tokenizer.json"), TokenizerSettings(eos_token="<eos>"), tmp_path / "b")
    assert DocumentEncoder(tmp_path / "b").eos_id == 1
    bring_tokenizer(str(tmp_path / "in"), TokenizerSettings(eos_token="<end>"), tmp_path / "c")
    with pytest.raises(ModelError, match=r"found '<end>'"):
        DocumentEncoder(tmp_path / "c")


def test_what_is_no_tokenizer(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=r"holds no tokenizer; found model\.safetensors"):
        bring_tokenizer(str(tmp_path), TokenizerSettings(path="x"), tmp_path / "out")
    with pytest.raises(ModelError, match="neither a folder with a tokenizer nor one on the hub"):
        bring_tokenizer("nobody/nothing", TokenizerSettings(path="x"), tmp_path / "out")
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("a b\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"vocab\.json and merges\.txt make no tokenizer"):
        bring_tokenizer(str(tmp_path), TokenizerSettings(path="x"), tmp_path / "out")


def test_a_broken_tokenizer_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        DocumentEncoder(tmp_path)


def test_nothing_to_train_on(tmp_path):
    with pytest.raises(DataError, match="no word often enough"):
        train_tokenizer(["once each"], TokenizerSettings(kind="words"), tmp_path)


def test_training_stops_after_so_many_characters(tmp_path):
    def texts():
        yield "aaaa aaaa"
        raise AssertionError("read on")

    train_tokenizer(texts(), TokenizerSettings(kind="words", max_characters=5), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary_size": 259}, r"tokenizer\.vocabulary_size is 259; expected at least 260"),
        ({"kind": "words", "vocabulary_size": 3}, "expected at least 4"),
        ({"min_frequency": 0}, r"tokenizer\.min_frequency"),
        ({"max_characters": -1}, r"tokenizer\.max_characters"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(SettingsError, match=message):
        TokenizerSettings(**options)
