"""Prompts from the grammar: openings to be continued, questions about a story, and requests to tell one.

The data set ``stories`` has as many of them as a run asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lmrl.errors import SettingsError
from lmrl.plugins.specs import DatasetSpec
from lmrl.stories.grammar import Split, Story, generator_of, story
from lmrl.stories.words import VERBS

Item = TypeVar("Item")


def openings(seed: int = 0, count: int = 64, split: Split = "train") -> list[str]:
    """Return ``count`` distinct openings: a first sentence, at times with part or all of the second.

    The first sentence names hero, object and place, so that openings of the splits ``train`` and ``test`` are disjoint.
    None of them tells how the story ends.
    """
    return _distinct(seed, count, split, "openings", _opening, lambda opening: opening)


def questions(seed: int = 0, count: int = 64, split: Split = "train") -> list[dict[str, str]]:
    """Return ``count`` rows with ``prompt`` (a story and a question about it) and ``answer`` ("a red ball").

    The other columns are ``hero``, ``object``, ``place`` and ``kind`` (who, what, where or feel).
    """
    return _distinct(seed, count, split, "questions", question, lambda row: row["prompt"])


def requests(seed: int = 0, count: int = 64, split: Split = "train") -> list[dict[str, str]]:
    """Return ``count`` distinct rows with ``prompt`` ("Please tell a story about Mia and a red ball in the park.").

    The other columns are ``hero``, ``object`` and ``place``, and ``answer``, a story of the grammar that fits.
    """
    return _distinct(seed, count, split, "requests", lambda told, _: request(told), lambda row: row["prompt"])


def request(told: Story) -> dict[str, str]:
    """Return the request that a story answers."""
    article = "an" if told.adjective[0] in "aeiou" else "a"
    return {
        "prompt": f"Please tell a story about {told.hero} and {article} {told.adjective} {told.object} {told.place}.",
        "answer": told.text,
        "hero": told.hero,
        "object": told.object,
        "place": told.place,
    }


def question(told: Story, generator: random.Random) -> dict[str, str]:
    """Draw one question about a story."""
    verb = VERBS[told.verb]
    article = "an" if told.adjective[0] in "aeiou" else "a"
    kinds = {
        "who": (f"Who {told.verb} the {told.object}?", told.hero),
        "what": (f"What did {told.hero} {verb}?", f"{article} {told.adjective} {told.object}"),
        "where": (f"Where did {told.hero} {verb} the {told.object}?", told.place),
        "feel": (f"How did {told.hero} feel in the end?", "happy" if told.happy else "sad"),
    }
    kind = generator.choice(sorted(kinds))
    asked, answer = kinds[kind]
    return {
        "prompt": f"Story: {told.text} Question: {asked} Answer:",
        "answer": answer,
        "hero": told.hero,
        "object": told.object,
        "place": told.place,
        "kind": kind,
    }


def _opening(told: Story, generator: random.Random) -> str:
    first, second = told.sentences[:2]
    words = second.split(" ")
    ends = generator.choice(("first", "first", "part", "second"))
    if ends == "first":
        return first
    taken = len(words) if ends == "second" else generator.randrange(1, len(words) - 1)
    return f"{first} {' '.join(words[:taken])}"


def _distinct(
    seed: int,
    count: int,
    split: Split,
    purpose: str,
    make: Callable[[Story, random.Random], Item],
    key: Callable[[Item], str],
) -> list[Item]:
    if count < 0:
        raise SettingsError(f"count is {count}; expected an integer >= 0")
    generator = generator_of(seed, f"{purpose}/{split}")
    items: dict[str, Item] = {}
    for _ in range(20 * count + 1000):
        if len(items) == count:
            return list(items.values())
        item = make(story(generator, split), generator)
        items.setdefault(key(item), item)
    raise SettingsError(f"the grammar has fewer than {count} distinct {purpose}; ask for at most {len(items)}")


@dataclass
class StoriesSettings:
    """Settings of the data set ``stories``."""

    kind: Literal["openings", "questions", "requests"] = "openings"
    """openings: the beginning of a story; questions: a story and a question, with the column answer; requests: a chat
    message that asks for a story, with the columns hero, object and place, for a model that has been taught to chat."""
    split: Literal["train", "test", "all"] = "train"
    """Train and test share no combination of hero, object and place; the embedded model saw train only."""
    count: int = 1024
    """Number of distinct prompts."""
    seed: int = 0
    """Seed of the prompts: the same seed gives the same ones."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SettingsError(f"count is {self.count}; expected an integer >= 1")


def rows(settings: StoriesSettings) -> list[dict[str, Any]]:
    """Return the data set's rows."""
    if settings.kind == "questions":
        return [dict(row) for row in questions(settings.seed, settings.count, settings.split)]
    if settings.kind == "requests":
        asked = requests(settings.seed, settings.count, settings.split)
        return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in asked]
    return [{"prompt": opening} for opening in openings(settings.seed, settings.count, settings.split)]


def builtin_datasets() -> list[DatasetSpec]:
    """Return the data sets that ship with the story world."""
    return [
        DatasetSpec(
            name="stories",
            build=rows,
            settings=StoriesSettings,
            summary="Openings of stories, questions about stories, or requests for one, from the embedded grammar.",
        )
    ]
