"""Gold measures of a story: exact, because the grammar is known. Pure functions of text, for rewards and reports."""

from __future__ import annotations

import re

from lmrl.stories.words import HAPPY_WORDS, HEROES, OBJECTS, PLACES, SAD_WORDS

_WORD = re.compile(r"[A-Za-z]+")
_SENTENCE_ENDS = (".", "?", "!")


def is_happy(text: str) -> bool | None:
    """Say how a story ends: True happily, False sadly, None when it has no end.

    The end is the last sentence, which must be complete. Its last feeling word decides (``HAPPY_WORDS`` and
    ``SAD_WORDS``), and a ``not`` or ``never`` right before it (or before a "very" or "so") turns it round.

    >>> is_happy("Mia found a ball. She was sad. In the end she smiled.")
    True
    """
    words = [word.lower() for word in _WORD.findall(_last_sentence(text))]
    for position in range(len(words) - 1, -1, -1):
        if words[position] in HAPPY_WORDS or words[position] in SAD_WORDS:
            before = [word for word in words[:position] if word not in ("very", "so")]
            turned = bool(before) and before[-1] in ("not", "never")
            return (words[position] in HAPPY_WORDS) != turned
    return None


def _last_sentence(text: str) -> str:
    """Return the last sentence without its end mark, or the empty string if it has none; a quote may follow the mark.

    Plain searches from the right: a vector environment asks this at every step in which a row ends.
    """
    text = text.rstrip()
    if text.endswith(("'", '"')):
        text = text[:-1]
    if not text.endswith(_SENTENCE_ENDS):
        return ""
    text = text[:-1]
    return text[max(text.rfind(mark) for mark in _SENTENCE_ENDS) + 1 :]


def story_object(text: str) -> str:
    """Return the first object that the text names, or the empty string."""
    return next((word for word in _WORD.findall(text) if word in OBJECTS), "")


def story_hero(text: str) -> str:
    """Return the first hero that the text names, or the empty string."""
    return next((word for word in _WORD.findall(text) if word in HEROES), "")


def story_place(text: str) -> str:
    """Return the place that the text names first, or the empty string."""
    found = [(text.find(place), place) for place in PLACES if place in text]
    return min(found)[1] if found else ""


def object_consistency(prompt: str, response: str) -> float:
    """Return the share of later object mentions that name the story's object, in [0, 1].

    The story's object is the first one named in the whole text. 0 when no object is named again: every story of the
    grammar comes back to its object, so its own stories all score 1.

    >>> object_consistency("Mia found a ball.", " But the ball fell and the kite broke.")
    0.5
    """
    mentions = [word for word in _WORD.findall(f"{prompt} {response}") if word in OBJECTS]
    later = mentions[1:]
    return sum(word == mentions[0] for word in later) / len(later) if later else 0.0


def request_share(prompt: str, response: str) -> float:
    """Return how much of a request a story keeps: the mean of hero, place (0 or 1) and object (share of mentions).

    A story that names another hero or place first, or no object, does not keep it. In [0, 1].

    >>> request_share("a story about Mia and a red ball in the park.", "One day, Tom saw a ball in the park.")
    0.6666666666666666
    """
    hero = float(bool(story_hero(prompt)) and story_hero(response) == story_hero(prompt))
    place = float(bool(story_place(prompt)) and story_place(response) == story_place(prompt))
    return (hero + place + object_consistency(prompt, response)) / 3
