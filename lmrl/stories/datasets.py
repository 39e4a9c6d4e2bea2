"""The data set ``stories``: prompts drawn from the grammar, as many as a run asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lmrl.errors import SettingsError
from lmrl.plugins.specs import DatasetSpec
from lmrl.stories.prompts import openings, questions, requests


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
    """Which prompts: the same seed gives the same ones."""

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
