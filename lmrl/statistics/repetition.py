"""How a text repeats itself, and whether it is there at all."""

from __future__ import annotations

from lmrl.errors import SettingsError
from lmrl.statistics.diversity import ngrams, words

LONGEST_PERIOD = 32
"""Words of the longest block whose repetition is looked for."""


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
