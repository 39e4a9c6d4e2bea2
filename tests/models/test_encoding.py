"""Texts as token ids: a BOS once, no EOS behind prompts, the same ids in every stage and from every codec."""

import re

import gymnasium
import pytest
import transformers
from byte_models import ADDING, VOCABULARY, write_byte_model

from lmrl.data import load_prompts
from lmrl.models.loading import load
from lmrl.models.reward_rows import reward_row
from lmrl.stages.asking import ask
from lmrl.stages.chat import ChatSession
from lmrl.stages.rl.checks import encode_prompts
from lmrl.text.card import FastCodec, TransformersCodec, load_card
from lmrl.text.chat_template import prompt_ids, response_row
from lmrl.text.encoding import opening_ids, text_ids

BEFORE = {"none": [], "bos": [1], "eos": [], "both": [1], "two": [1, 0]}
TEXTS = ("Once upon a time", " Once", "", "a <s> b", "Once</s>", "é\U0001f600 \n", " <s>Once")


def codecs_of(folder):
    """Return both kinds of codec of one tokenizer, and transformers' own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return FastCodec(folder / "tokenizer.json"), TransformersCodec(tokenizer), tokenizer


@pytest.mark.parametrize("adding", ADDING)
def test_what_stands_in_front_is_added_once_and_nothing_behind(tmp_path, adding):
    fast, slow, tokenizer = codecs_of(write_byte_model(tmp_path, adding))
    before = BEFORE[adding]
    assert opening_ids(fast) == opening_ids(slow) == before
    for text in TEXTS:
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        for codec in (fast, slow):
            assert text_ids(codec, text) == [*before, *plain], text
            assert prompt_ids(codec, text) == (text, [*before, *plain])
        whole = tokenizer(text)["input_ids"]
        assert fast.encode(text) == slow.encode(text) == whole
        assert whole[: len(before) + len(plain)] == [*before, *plain], "transformers agrees but for what is behind"
    written = "".join({1: "<s>", 0: "<pad>"}[token] for token in before)
    for text in ("Once", " Once", ""):
        assert text_ids(fast, written + text) == text_ids(slow, written + text) == text_ids(fast, text)


@pytest.mark.parametrize("adding", ADDING)
@pytest.mark.parametrize("text", ["<s>Once upon", "Once upon", "Once</s> upon", "a <s> b"])
def test_every_stage_encodes_a_text_alike(tmp_path, adding, text):
    folder = write_byte_model(tmp_path, adding)
    model = load(folder)
    card, codec = model.card, model.card.codec
    expected = text_ids(codec, text)
    assert expected.count(2) == text.count("</s>")
    if adding in ("bos", "both"):
        assert expected.count(1) == (2 if text == "a <s> b" else 1)
    assert encode_prompts(model, load_prompts([text], codec=codec)) == [expected]  # rl and prefer
    assert ask(card, text, complete=True).ids == expected  # eval and compare
    assert ChatSession(model, complete=True)._fit_text(text)[0] == expected
    assert response_row(codec, card.eos_ids, text, " b") == (expected, [*codec.encode_plain(" b"), 2])  # sft, offline
    assert reward_row(card, text, " b") == (expected, [*codec.encode_plain(" b"), 2])
    env = gymnasium.make(
        "lmrl:TextGen-v0", model=folder, prompts=[text], reward=lambda prompts, responses: [0.0] * len(prompts)
    )
    seen = env.reset(seed=0)[0]
    assert seen["input_ids"][: int(seen["prompt_length"][0])].tolist() == expected


def test_a_completion_that_ends_itself_is_closed_once(tmp_path):
    for adding in ADDING:
        card = load_card(write_byte_model(tmp_path / adding, adding))
        assert response_row(card.codec, card.eos_ids, "a", "b</s>")[1] == [*card.codec.encode_plain("b"), 2]


@pytest.mark.parametrize("settings", [{"add_bos_token": True}, {"add_eos_token": True}, {"add_bos_token": False}])
def test_settings_by_which_transformers_changes_the_tokenizer_are_obeyed(tmp_path, settings):
    folder = write_byte_model(tmp_path, "bos", **settings)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    codec = load_card(folder).codec
    whole = tokenizer("Once")["input_ids"]
    assert codec.encode("Once") == whole
    assert text_ids(codec, "Once") == [1] * (whole[0] == 1) + codec.encode_plain("Once")


def test_a_text_that_is_cut_keeps_its_bos(tmp_path):
    session = ChatSession(load(write_byte_model(tmp_path, "both")), complete=True)
    ids, dropped = session._fit_text("x" * 200)
    assert ids[0] == 1 and set(ids[1:]) == {VOCABULARY["x"]} and dropped == 201 - len(ids)


def test_a_pair_has_the_tokenizers_own_form(tmp_path):
    fast, slow, tokenizer = codecs_of(write_byte_model(tmp_path, "both"))
    assert fast.encode_pair("a", "b") == slow.encode_pair("a", "b") == tokenizer("a", "b")["input_ids"]


def test_no_stage_encodes_by_itself(root):
    allowed = {"codec.py", "encoding.py", "reward_rows.py"}
    for file in (root / "lmrl").rglob("*.py"):
        if file.name not in allowed:
            assert not re.search(r"codec\.encode\(", file.read_text(encoding="utf-8")), file
