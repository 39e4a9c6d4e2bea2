"""The grammar: one seeded draw is one short story with a hero, an object and a happy or a sad end.

Every choice adds its log-probability to the story's, and a text has one derivation, so the grammar's true entropy is
known and a model's loss can be compared with it. Leaves out: tokens.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from lmrl.errors import SettingsError
from lmrl.stories.words import BOYS, CATEGORIES, GIRLS, HEROES, PLACES, TIMES, VERBS

Split = Literal["train", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "test", "all")
TEST_SHARE = 0.2
"""Share of the (hero, object, place) combinations that no story of the split ``train`` uses."""

WISHES = (
    "{She} liked the {object} very much.",
    "{She} was happy and took the {object} home.",
    "{She} showed the {object} to {friend}.",
)
TURNS = (
    ("But the {object} fell into the water.", 0.5),
    ("Then a big dog ran away with the {object}.", 0.3),
    ("But {friend} wanted the {object} too.", 0.6),
    ("Then the wind blew and the {object} was gone.", 0.3),
    ("But {she} lost the {object} on the way home.", 0.4),
    ("Then it started to rain on the {object}.", 0.6),
)
"""Events of the object, and the probability of a happy end after it (0.45 on average)."""
EFFORTS = (
    "{She} looked for the {object} all night.",
    "{She} asked {her} mom for help.",
    "{She} called {friend} and they looked everywhere.",
)
HAPPY_CAUSES = (
    "In the end {friend} came with the {object}",
    "At last {her} mom saved the {object}",
    "{She} and {friend} shared the {object}",
    "Soon the {object} was safe again",
)
SAD_CAUSES = (
    "{She} never saw the {object} again",
    "In the end {friend} kept the {object}",
    "Nobody could help the {object}",
)
HAPPY_FEELINGS = ("{hero} smiled", "{hero} laughed", "{she} was very happy", "{she} was glad", "they danced")
SAD_FEELINGS = ("{hero} cried", "{hero} wept", "{she} was very sad", "{she} sighed", "{she} walked home alone")
EFFORT_SHARE = 0.4

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Story:
    """A story: ``text`` is its sentences, the first of which names hero, object and place."""

    text: str
    sentences: tuple[str, ...]
    hero: str
    object: str
    adjective: str
    place: str
    verb: str
    happy: bool
    log_probability: float
    """Natural logarithm of the probability that the grammar (all splits) draws exactly this text."""


class Draws:
    """Uniform and weighted choices that keep the log-probability of what they chose."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator
        self.log_probability = 0.0

    def one(self, options: Sequence[Choice]) -> Choice:
        """Return one of the options, each equally likely."""
        self.log_probability -= math.log(len(options))
        return options[self.generator.randrange(len(options))]

    def happens(self, probability: float) -> bool:
        """Return True with this probability."""
        happened = self.generator.random() < probability
        self.log_probability += math.log(probability if happened else 1.0 - probability)
        return happened


def generator_of(seed: int | random.Random, purpose: str = "") -> random.Random:
    """Return a generator: a given one as it is, or a new one from a seed and a purpose that keeps streams apart."""
    return seed if isinstance(seed, random.Random) else random.Random(f"lmrl.stories/{purpose}/{seed}")


def in_split(hero: str, thing: str, place: str, split: Split) -> bool:
    """Say whether the combination belongs to the split. Train and test share none; ``all`` holds both."""
    if split not in SPLITS:
        raise SettingsError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if split == "all":
        return True
    digest = hashlib.sha256(f"{hero}/{thing}/{place}".encode()).digest()
    return (digest[0] < TEST_SHARE * 256) == (split == "test")


def story(seed: int | random.Random = 0, split: Split = "all") -> Story:
    """Draw one story from a seed, or the next one from a ``random.Random``.

    >>> story(0) == story(0)
    True
    """
    generator = generator_of(seed, "story")
    while True:
        drawn = _draw(Draws(generator))
        if in_split(drawn.hero, drawn.object, drawn.place, split):
            return drawn


def _draw(draws: Draws) -> Story:
    hero = draws.one(HEROES)
    # Each object is as likely as any other, so a kind is as likely as it has nouns.
    kind, thing = draws.one([(kind, noun) for kind in CATEGORIES for noun in kind.nouns])
    adjective, place, verb = draws.one(kind.adjectives), draws.one(PLACES), draws.one(tuple(VERBS))
    article = "an" if adjective[0] in "aeiou" else "a"
    she, her = ("she", "her") if hero in GIRLS else ("he", "his")
    names = {"hero": hero, "object": thing, "she": she, "She": she.capitalize(), "her": her}

    def fill(template: str) -> str:
        # The friend is drawn where a story first needs one, and stays the same after that.
        if "{friend}" in template and "friend" not in names:
            names["friend"] = draws.one([name for name in GIRLS + BOYS if name != hero])
        return template.format(**names)

    sentences = [f"{draws.one(TIMES)}, {hero} {verb} {article} {adjective} {thing} {place}."]
    sentences.append(fill(draws.one(kind.wishes + WISHES)))
    turn, happy_share = draws.one(TURNS)
    sentences.append(fill(turn))
    if draws.happens(EFFORT_SHARE):
        sentences.append(fill(draws.one(EFFORTS)))
    happy = draws.happens(happy_share)
    cause = draws.one(HAPPY_CAUSES if happy else SAD_CAUSES + kind.losses)
    feelings: tuple[str, ...] = HAPPY_FEELINGS if happy else SAD_FEELINGS
    cause_text = fill(cause)
    if "friend" not in names:  # "they" needs somebody else
        feelings = tuple(feeling for feeling in feelings if not feeling.startswith("they"))
    sentences.append(f"{cause_text}, and {fill(draws.one(feelings))}.")
    return Story(
        text=" ".join(sentences),
        sentences=tuple(sentences),
        hero=hero,
        object=thing,
        adjective=adjective,
        place=place,
        verb=verb,
        happy=happy,
        log_probability=draws.log_probability,
    )
