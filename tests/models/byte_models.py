"""A tiny model with a byte-level tokenizer, whose special tokens, post-processor and chat template a test chooses."""

import json

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from lmrl.testing import write_tiny_model

BYTES = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()), start=4)}
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | BYTES
ADDING = {"none": "$A", "bos": "<s> $A", "eos": "$A </s>", "both": "<s> $A </s>", "two": "<s> <pad> $A"}
"""What the tokenizer adds to a text."""


def write_byte_model(folder, adding="none", template=None, tokens=(), ordinary=(), context=64, **settings):
    """Write the model and return its folder; ``tokens`` are further special tokens, ``ordinary`` added plain ones.

    Ids: 0 pad, 1 BOS, 2 EOS, 3 unknown, 256 bytes, then ``tokens`` and ``ordinary``. The model names EOS alone as its
    end. ``settings`` go into the tokenizer's configuration.
    """
    size = len(VOCABULARY) + len(tokens) + len(ordinary)
    write_tiny_model(folder, words=[str(number) for number in range(size - 3)], context=context)
    tokenizer = Tokenizer(BPE(VOCABULARY, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>", *tokens])
    tokenizer.add_tokens(list(ordinary))
    special = [(token, VOCABULARY[token]) for token in ("<s>", "</s>", "<pad>")]
    pair = ADDING[adding].replace("$A", "$A $B")
    tokenizer.post_processor = TemplateProcessing(single=ADDING[adding], pair=pair, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **named, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
