"""A person who ranks completions in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lmrl.preferences.annotators import Comparison, Judgement


class PersonAnnotator:
    """Asks a person."""

    def __init__(self, name: str = "person", seed: int = 0) -> None:
        self.name, self.seed = name, seed

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgement | None]:
        """Return one judgement per comparison."""
        raise NotImplementedError
