"""Diversity of many texts, and repetition within one.

The measures of diversity fall with the amount of text, whoever wrote it, so texts of several models are compared after
``cut_to_words`` has given each the same number of words.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence

from lmrl.errors import SettingsError

LONGEST_PERIOD = 32
"""Words of the longest block whose repetition is looked for."""
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


def repeated_share(text: str, n: int = 4) -> float:
    """Return the share of a text's n-grams of words that it has used before, 0 for a text of fewer than n words.

    1 - distinct / all: seq-rep-n of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training".

    >>> repeated_share("a b a b a b", 2)
    0.6
    """
    if n < 1:
        raise SettingsError(f"n is {n}; expected an integer >= 1")
    grams = ngrams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def longest_loop(text: str, longest_period: int = LONGEST_PERIOD) -> int:
    """Return the words of the longest stretch that is one block said over and over, 0 if nothing follows itself.

    "ha ha ha" is 3 words, "the cat the cat the" 5: a block counts once it has been said twice in a row, blocks of up
    to ``longest_period`` words. It finds the loops that sampling falls into, which a share over a long text hides.

    >>> longest_loop("and so the cat the cat the end")
    5
    """
    said = words(text)
    longest = 0
    for period in range(1, min(longest_period, len(said) // 2) + 1):
        matches = 0
        for place in range(period, len(said)):
            matches = matches + 1 if said[place] == said[place - period] else 0
            if matches >= period:
                longest = max(longest, matches + period)
    return longest


def is_empty(text: str) -> bool:
    """Say whether a text has nothing to read: no character but white space and ones that do not show.

    >>> is_empty(" \\n"), is_empty("\\u200b"), is_empty(".")
    (True, True, False)
    """
    return not any(char.isprintable() and not char.isspace() for char in text)
