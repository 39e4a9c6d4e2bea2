"""The word-level tokenizer: one token per word or punctuation mark.

Text decodes to proper English by the tokenizer's own decoder, and ``encode(decode(ids)) == ids`` for every row of
ordinary ids. Words outside the vocabulary become ``<unk>``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lmrl.stories import grammar, words

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
SPECIALS = (PAD, EOS, UNKNOWN)
QUESTION_TEXTS = (
    "Story: Question: Answer: Who What did feel in the end? Where did? How did?",
    "happy sad a an and he she his her He She , .",
)
_PIECE = re.compile(r"\w+|[^\w\s]")


def vocabulary() -> list[str]:
    """Return all tokens in the order of their ids: specials first, then words by name."""
    texts: list[str] = [*words.HEROES, *words.PLACES, *words.TIMES, *words.VERBS, *words.VERBS.values()]
    for kind in words.CATEGORIES:
        texts += [*kind.nouns, *kind.adjectives, *kind.wishes, *kind.losses]
    texts += [*grammar.WISHES, *(turn for turn, _ in grammar.TURNS), *grammar.EFFORTS]
    texts += [*grammar.HAPPY_CAUSES, *grammar.SAD_CAUSES, *grammar.HAPPY_FEELINGS, *grammar.SAD_FEELINGS]
    texts += QUESTION_TEXTS
    pieces = {piece for text in texts for piece in _PIECE.findall(re.sub(r"\{\w+\}", " ", text))}
    return [*SPECIALS, *sorted(pieces)]


def build() -> Any:
    """Return the ``tokenizers.Tokenizer`` of the story world."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(vocabulary())}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    # The decoder works on single tokens: a word gets a space before it, a punctuation mark does not. What a row of ids
    # says therefore never depends on the ids that follow it.
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def save(folder: Path, context_length: int) -> Any:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, as transformers reads them, and return the tokenizer."""
    return write(build(), folder, context_length)


def write(tokenizer: Any, folder: Path, context_length: int) -> Any:
    """Write a tokenizer with these special tokens as transformers reads it, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return tokenizer
