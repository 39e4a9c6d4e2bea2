"""Which prompts belong to which update: a function of the seed and the update's number, so a resume needs no state."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from lmrl.errors import SettingsError


@dataclass(frozen=True)
class PromptOrder:
    """The order of ``count`` prompts in batches of ``batch``: every prompt once per epoch, each epoch shuffled anew.

    Batches run across the end of an epoch, so none is short. Ranks use the same seed and take slices of one batch.
    Raises ``SettingsError`` when ``count`` or ``batch`` is below 1.
    """

    count: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("batch", self.batch)):
            if value < 1:
                raise SettingsError(f"the prompt order's {name} is {value}; expected at least 1.")

    def indices(self, update: int) -> list[int]:
        """Return the prompts' indices of one update; updates count from 0."""
        if update < 0:
            raise SettingsError(f"the update's number is {update}; updates count from 0.")
        first = update * self.batch
        places = (divmod(place, self.count) for place in range(first, first + self.batch))
        return [_permutation(self.count, self.seed, epoch)[place] for epoch, place in places]

    def epoch(self, update: int) -> float:
        """Return how often every prompt has been drawn before this update, as a fraction."""
        return update * self.batch / self.count


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    # random.Random and not numpy: numpy reserves the right to change its permutations between versions.
    order = list(range(count))
    random.Random(f"prompt order {seed} {epoch}").shuffle(order)
    return tuple(order)
