"""``good_story``: what the embedded world's reader wants of a story; the gold reward of its studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmrl.stories.measures import is_happy, request_share


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
