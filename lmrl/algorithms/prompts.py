"""The choice of prompts: what a prompt sampler is given, what it returns, and what it is told.

Importable without torch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lmrl.errors import ResumeError
from lmrl.seeds import derive_seed


@dataclass(frozen=True)
class PromptPool:
    """Training prompts of a run."""

    texts: Sequence[str]
    """Texts of the prompts."""
    columns: Mapping[str, Sequence[Any]]
    """Columns of the data by name, an entry for each prompt."""
    batch: int
    """Number of prompts of one update over all ranks."""
    seed: int
    """Seed of the run."""
    group_size: int = 1
    """Responses to each prompt."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class PromptResults:
    """Scores of one update's groups over all ranks. Groups that were sampled anew and left out are included."""

    update: int
    """Number of the update, from 1."""
    indices: Sequence[int]
    """Prompt of each group."""
    means: Sequence[float]
    """Mean score of each group's scored responses, NaN where there is none."""
    spreads: Sequence[float]
    """Standard deviation of each group's scores, NaN where there is none."""
    scored: Sequence[int]
    """Number of each group's scored responses."""


class PromptSampler:
    """Base class of prompt samplers: write ``indices``, and ``observe`` if scores matter.

    Every rank holds the same sampler and passes it the same results, and must get the same prompts. ``indices`` and
    ``further`` must not change the sampler: they depend on their arguments, the pool and the observed results. Then a
    resumed run draws the same prompts as an uninterrupted one.
    """

    Settings: ClassVar[type]
    """Dataclass of the sampler's settings."""

    def __init__(self, settings: Any, pool: PromptPool) -> None:
        self.settings, self.pool = settings, pool

    def indices(self, update: int) -> Sequence[int]:
        """Return ``pool.batch`` indices of prompts for this update, counted from 1."""
        raise TypeError(f"{type(self).__name__} does not define indices(update)")

    def further(self, update: int, number: int, groups: Sequence[int]) -> Sequence[int]:
        """Return another prompt for each of these groups, in round ``number`` of sampling anew; any by default.

        ``groups`` are numbers in the whole batch. A rank asks for its own groups alone, so a group's prompt must not
        depend on the others.
        """
        seeds = (derive_seed(self.pool.seed, "further prompts", update, number, group) for group in groups)
        return [random.Random(seed).randrange(len(self.pool)) for seed in seeds]

    def observe(self, results: PromptResults) -> None:
        """Take note of an update's scores, before the next update's prompts are chosen."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: JSON-like values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        if state:
            raise ResumeError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}")
