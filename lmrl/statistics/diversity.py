"""How different many texts are from one another.

Both measures fall with the amount of text, whoever wrote it, so texts of several models are compared after
``cut_to_words`` has given each the same number of words.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence

from lmrl.errors import SettingsError

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text in lower case, in any script that puts spaces between words."""
    return _WORD.findall(text.lower())


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the share of n-grams of words, over all texts, that differ: distinct ones / all (distinct-n).

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models". No n-gram spans two
    texts; NaN where there is none.

    >>> distinct_n(["the cat sat", "the cat ran"], 2)
    0.75
    """
    if n < 1:
        raise SettingsError(f"n is {n}; expected an integer >= 1")
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def compression_ratio(texts: Sequence[str]) -> float:
    """Return the bytes of all texts / their bytes after DEFLATE; the higher, the more alike they are.

    Shaib et al. 2024, "Standardizing the Measurement of Text Diversity", who find that it says what slow scores of
    n-gram overlap between pairs say. The texts are joined by line ends; level 9, no header of gzip's. NaN without text.
    """
    joined = "\n".join(texts).encode("utf-8", "replace")
    if not joined.strip():
        return math.nan
    return len(joined) / len(zlib.compress(joined, 9))


def cut_to_words(texts: Sequence[str], limit: int) -> list[str]:
    """Return as many of the texts, from the first, as have ``limit`` words together; the last one may be cut short.

    >>> cut_to_words(["a b c", "d e f", "g"], 4)
    ['a b c', 'd']
    """
    kept: list[str] = []
    left = limit
    for text in texts:
        if left <= 0:
            break
        ends = [found.end() for found in _WORD.finditer(text)]
        kept.append(text if len(ends) <= left else text[: ends[left - 1]])
        left -= len(ends)
    return kept


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a sequence, in order."""
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]
