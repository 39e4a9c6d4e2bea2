"""A real tokenizer with a chat template, small enough to be made for every test."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest

TEMPLATE = (
    "^{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def letters(tmp_path_factory):
    """Return a codec of one id per letter, without a chat template."""
    return _codec(tmp_path_factory.mktemp("letters"), "")


@pytest.fixture(scope="session")
def chat_codec(tmp_path_factory):
    """Return a codec of one id per letter, whose template writes each role in brackets behind a ``^``."""
    return _codec(tmp_path_factory.mktemp("chat"), TEMPLATE)


def _codec(folder: Path, template: str):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    from lmrl.text.codec import FastCodec

    vocabulary = {letter: number for number, letter in enumerate(string.printable)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    return FastCodec(folder / "tokenizer.json")
