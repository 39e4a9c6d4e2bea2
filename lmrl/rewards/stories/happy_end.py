"""``happy_end``: the embedded world's default reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmrl.stories.measures import is_happy


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
