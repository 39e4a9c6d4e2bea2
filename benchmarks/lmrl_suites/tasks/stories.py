"""The embedded story world for suites: its other gold measures as rewards, and its stories as texts of small models."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lmrl.stories.grammar import story
from lmrl.stories.measures import object_consistency
from lmrl.stories.words import OBJECTS


def objects(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return how far a story keeps to its object while it names it often: consistency times mentions of up to four.

    The embedded model is consistent already (0.99), so that alone leaves nothing to learn.
    """
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        mentions = sum(word.strip(".,?!'\":") in OBJECTS for word in response.split())
        scores.append(object_consistency(prompt, response) * min(mentions, 4) / 4)
    return scores


def texts(generator: random.Random) -> str:
    """Return a story of the grammar."""
    return story(generator, "train").text
