"""Rewards of the embedded world: ``happy_end``, its default, and ``good_story``, the gold reward of its studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmrl.stories.measures import is_happy, request_share


@dataclass
class HappyEndSettings:
    """Settings of the reward ``happy_end``."""

    happy: float = 1.0
    """Score of a story that ends happily: the last feeling in its last sentence is a happy one."""
    sad: float = -1.0
    """Score of a story that ends sadly."""
    none: float = 0.0
    """Score of a story without an end: its last sentence is unfinished, or names no feeling."""


class HappyEnd:
    """Scores how the response ends, by the story grammar's own words for feelings."""

    reads_columns = ()

    def __init__(self, settings: HappyEndSettings) -> None:
        self.scores = {True: settings.happy, False: settings.sad, None: settings.none}
        self.bounds = (min(self.scores.values()), max(self.scores.values()))

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Return one score per response."""
        return [self.scores[is_happy(response)] for response in responses]


@dataclass
class GoodStorySettings:
    """Settings of the reward ``good_story``."""

    end: float = 1.0
    """Added for a happy end and taken away for a sad one."""
    request: float = 1.0
    """Times the share of the request that the story keeps: its hero, its object, its place."""


class GoodStory:
    """Scores a story by its end and by how it keeps the request; exact, because the grammar is known."""

    reads_columns = ()

    def __init__(self, settings: GoodStorySettings) -> None:
        self.settings = settings
        end, request = abs(settings.end), settings.request
        self.bounds = (min(request, 0.0) - end, max(request, 0.0) + end)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]
    ) -> dict[str, list[float]]:
        """Return one score per response, with the parts ``end`` and ``request``."""
        ends = [{True: 1.0, False: -1.0, None: 0.0}[is_happy(response)] for response in responses]
        kept = [request_share(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        scores = [
            self.settings.end * end + self.settings.request * share for end, share in zip(ends, kept, strict=True)
        ]
        return {"score": scores, "end": ends, "request": kept}
