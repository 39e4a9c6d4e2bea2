"""The words of the story world: who, what, where, and the words by which an end is known to be happy or sad."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """A kind of object: its nouns, the adjectives that suit them, and sentences that only suit this kind."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    wishes: tuple[str, ...]
    losses: tuple[str, ...]


GIRLS = ("Mia", "Anna", "Lily", "Sara", "Emma", "Rosa", "Ella", "Nora")
BOYS = ("Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Finn", "Omar")
HEROES = GIRLS + BOYS

CATEGORIES = (
    Category(
        nouns=("ball", "kite", "doll", "drum", "boat", "car", "train"),
        adjectives=("red", "blue", "green", "yellow", "big", "small", "new", "old"),
        wishes=("{She} wanted to play with the {object}.", "{She} played with the {object} all day."),
        losses=("The {object} was stuck in the mud",),
    ),
    Category(
        nouns=("apple", "cake", "pie", "pear", "cookie", "carrot"),
        adjectives=("big", "small", "sweet", "fresh", "round", "tasty"),
        wishes=("{She} wanted to eat the {object}.", "{She} washed the {object} with cold water."),
        losses=("A goat ate the {object}",),
    ),
    Category(
        nouns=("cat", "duck", "frog", "rabbit", "bird", "puppy"),
        adjectives=("brown", "white", "big", "small", "young", "hungry"),
        wishes=("{She} gave the {object} some milk.", "{She} wanted to take care of the {object}."),
        losses=("The {object} did not come back",),
    ),
    Category(
        nouns=("hat", "bell", "book", "lamp", "shell", "key", "ring", "coat"),
        adjectives=("red", "blue", "white", "shiny", "pretty", "small", "new", "old"),
        wishes=("{She} put the {object} in a box.", "{She} cleaned the {object} with care."),
        losses=("The {object} was lost in the grass",),
    ),
)
OBJECTS = tuple(noun for kind in CATEGORIES for noun in kind.nouns)

PLACES = (
    "in the park",
    "in the garden",
    "in the forest",
    "by the river",
    "by the lake",
    "on the beach",
    "on the farm",
    "at school",
    "under a tree",
    "behind the house",
)

TIMES = (
    "One day",
    "One morning",
    "One evening",
    "One sunny day",
    "One cold day",
    "On Monday",
    "On Sunday",
    "Last summer",
    "After school",
    "After lunch",
)

VERBS = {"found": "find", "saw": "see", "got": "get"}
"""Verbs by which the hero comes to the object, and their forms in a question."""

HAPPY_WORDS = frozenset({"smiled", "laughed", "happy", "glad", "danced"})
SAD_WORDS = frozenset({"cried", "wept", "sad", "sighed", "alone"})
