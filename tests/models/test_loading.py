"""Model cards and loading: what is read, what is refused."""

import json

import pytest
import torch

from lmrl.errors import ModelError
from lmrl.models import load
from lmrl.testing import write_tiny_model
from lmrl.text.card import TransformersCodec, load_card, response_texts


@pytest.fixture
def folder(tmp_path):
    return write_tiny_model(tmp_path / "tiny-model")


def edit(folder, name="config.json", **changes):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_card(folder):
    card = load_card(folder)
    assert (card.eos_ids, card.pad_id, card.context_length, card.vocab_size) == ((1,), 0, 48, 15)
    assert card.codec.encode("the cat") == [3, 5]
    assert card.codec.decode_batch([[3, 5, 1]]) == ["the cat"]


def test_several_eos_ids_and_the_generation_config_comes_first(folder):
    edit(folder, "generation_config.json", eos_token_id=[1, 7])
    assert load_card(folder).eos_ids == (1, 7)


def test_the_fast_codec_equals_transformers(folder):
    from transformers import AutoTokenizer

    slow = TransformersCodec(AutoTokenizer.from_pretrained(folder))
    fast = load_card(folder).codec
    for text in ("the cat ran far .", "a dog", "zebra !"):
        assert fast.encode(text) == slow.encode(text)
        assert fast.decode_batch([fast.encode(text)]) == slow.decode_batch([slow.encode(text)])


def test_real_model(shared):
    card = load_card(shared / "data" / "models" / "stories260K-llama")
    assert card.eos_ids == (1, 2) and card.pad_id == 0 and card.context_length == 512
    prompt = card.codec.encode("Once upon a time")
    assert prompt[0] == 1, "the tokenizer's template adds one BOS"
    [text] = response_texts(card.codec, [prompt], [[317, 1]], card.eos_ids)
    assert text.startswith((" ", ",")) or text  # decoded as a continuation
    assert load(card.path).model.dtype == torch.float32


def test_responses_keep_their_leading_space_and_lose_eos_and_stop(folder):
    card = load_card(folder)
    prompt, response = card.codec.encode("the cat"), [*card.codec.encode("ran home"), 1]
    assert response_texts(card.codec, [prompt], [response], card.eos_ids) == [" ran home"]
    assert response_texts(card.codec, [prompt], [response], card.eos_ids, ["home"]) == [" ran "]
    assert response_texts(card.codec, [prompt], [[]], card.eos_ids) == [""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_encoder_decoder": True, "model_type": "t5"}, "encoder-decoder"),
        ({"vocab_size": None}, "vocab_size|could not be loaded"),
    ],
)
def test_refused(folder, change, message):
    edit(folder, **change)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_no_eos(folder):
    edit(folder, eos_token_id=None)
    edit(folder, "generation_config.json", eos_token_id=None)
    with pytest.raises(ModelError, match="eos_token_id"):
        load_card(folder)


def test_special_id_beyond_the_embeddings(folder):
    edit(folder, "generation_config.json", eos_token_id=999)
    with pytest.raises(ModelError, match="999"):
        load(folder)


def test_missing_folder_names_its_neighbour(folder):
    with pytest.raises(ModelError, match="tiny-model"):
        load_card(folder.parent / "tiny-modle")


def test_broken_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        load_card(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_card(folder)


def test_a_broken_tokenizer_or_template_is_named(folder):
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read \(EOF"):
        load_card(folder)
    (folder / "tokenizer.json").write_bytes(whole)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is not UTF-8"):
        load_card(folder)


def test_pickled_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="could not be loaded"):
        load(folder)


def test_a_reward_model_is_no_language_model(folder, tmp_path):
    from lmrl.models.reward_model import start_reward_model

    start_reward_model(folder, seed=0).save(tmp_path / "scores")
    with pytest.raises(ModelError, match="is a reward model"):
        load(tmp_path / "scores")
