"""Text to token ids, for every stage: the tokens that a tokenizer puts in front, once, and nothing behind.

Needs neither torch nor transformers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmrl.text.codec import TextCodec


def text_ids(codec: TextCodec, text: str) -> list[int]:
    """Return the ids of a plain text that a model continues.

    They begin with the tokens that the tokenizer adds before each text, usually BOS. A text that already begins with
    them gets no second copy. Tokens that the tokenizer adds behind each text, such as EOS, are left out: a model that
    reads them would continue a text that has ended. An EOS written in the text stays.
    """
    before, plain = opening_ids(codec), codec.encode_plain(text)
    return plain if plain[: len(before)] == before else [*before, *plain]


@lru_cache(maxsize=32)
def _added_before(codec: TextCodec) -> tuple[int, ...]:
    whole, plain = codec.encode("a"), codec.encode_plain("a")
    places = range(len(whole) - len(plain) + 1)
    found = next((at for at in places if plain and whole[at : at + len(plain)] == plain), 0)
    return tuple(whole[:found])


def opening_ids(codec: TextCodec) -> list[int]:
    """Return the tokens that the tokenizer puts before each text: BOS, or several, or none."""
    return list(_added_before(codec))
