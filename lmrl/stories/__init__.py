"""The embedded world: a story grammar, prompts and gold measures, and a model trained on it.

Importing this package needs neither torch nor transformers.
"""

from pathlib import Path

from lmrl.stories.grammar import Split, Story, story
from lmrl.stories.measures import (
    is_happy,
    object_consistency,
    request_share,
    story_hero,
    story_object,
    story_place,
)
from lmrl.stories.prompts import builtin_datasets, openings, questions, requests

MODEL_PATH: Path = Path(__file__).parent / "model"
"""Folder of the embedded model and its tokenizer, in the transformers layout."""

__all__ = [
    "MODEL_PATH",
    "Split",
    "Story",
    "builtin_datasets",
    "is_happy",
    "object_consistency",
    "openings",
    "questions",
    "request_share",
    "requests",
    "story",
    "story_hero",
    "story_object",
    "story_place",
]
