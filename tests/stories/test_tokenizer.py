import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lmrl.stories import MODEL_PATH, openings, questions, story
from lmrl_suites.story_model.tokenizer import SPECIALS, build, save, vocabulary

TOKENIZER = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
ORDINARY = st.integers(len(SPECIALS), TOKENIZER.get_vocab_size() - 1)


@given(st.lists(ORDINARY, max_size=40))
def test_ids_survive_text(ids):
    assert TOKENIZER.encode(TOKENIZER.decode(ids)).ids == ids


@given(st.lists(ORDINARY, min_size=1, max_size=20), st.lists(ORDINARY, max_size=20))
def test_what_follows_does_not_change_the_text_before(first, second):
    assert TOKENIZER.decode(first + second).startswith(TOKENIZER.decode(first))


@given(st.integers(0, 2**32))
def test_stories_survive_ids(seed):
    text = story(seed).text
    ids = TOKENIZER.encode(text).ids
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & set(range(len(SPECIALS)))


def test_questions_and_openings_survive_ids():
    for text in [row["prompt"] for row in questions(0, 100)] + openings(0, 100):
        assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_decoding_gives_english():
    ids = TOKENIZER.encode("One day , Mia found a ball . She smiled .").ids
    assert TOKENIZER.decode(ids) == "One day, Mia found a ball. She smiled."
    assert TOKENIZER.decode([*ids, TOKENIZER.token_to_id("<eos>")]) == "One day, Mia found a ball. She smiled."


def test_unknown_words():
    assert TOKENIZER.encode("Mia met Zaphod").tokens == ["Mia", "<unk>", "<unk>"]


def test_the_packaged_tokenizer_is_the_one_that_the_grammar_makes(tmp_path):
    assert build().to_str() == TOKENIZER.to_str()
    save(tmp_path, 128)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((MODEL_PATH / name).read_text())
    assert 150 <= len(vocabulary()) <= 250


def test_transformers_reads_it():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_PATH)
    text = story(0).text
    ids = tokenizer(text)["input_ids"]
    assert ids == TOKENIZER.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
