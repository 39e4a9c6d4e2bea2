"""Schedules of a run: the learning rate, and which rows of the data belong to which update.

Both are functions of the update's number, the order of the seed too, so a resume needs no state.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from lmrl.errors import SettingsError

Schedule = Literal["constant", "linear", "cosine"]


def schedule_factor(done: int, total: int, warmup: int, schedule: Schedule, final_share: float = 0.0) -> float:
    """Return what the peak learning rate is multiplied by after ``done`` of ``total`` steps.

    The warm-up rises linearly over ``warmup`` steps, the first of which already moves. ``linear`` and ``cosine``
    (Loshchilov and Hutter 2017, without restarts) then fall from 1 towards ``final_share``.
    """
    if done < warmup:
        return (done + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (done - warmup) / max(1, total - warmup)
    falling = 1.0 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final_share + (1.0 - final_share) * falling


def extension_note(
    done: int, planned: int, total: int, settings: Any, unit: str = "update", final_share: float = 0.0
) -> str:
    """Return a sentence about a resumed run whose length has changed, or the empty string if nothing else changes.

    ``done`` updates or steps were made of ``planned``; now the run has ``total``. The schedule spans the whole run, as
    if it had been that long from the start, so the next learning rate can differ from the planned one.
    ``settings`` has ``learning_rate``, ``schedule`` and the warm-up in ``warmup_<unit>s``.
    """
    warmup = getattr(settings, f"warmup_{unit}s")
    last, first = (
        settings.learning_rate * schedule_factor(place, length, warmup, settings.schedule, final_share)
        for place, length in ((done - 1, planned), (done, total))
    )
    if planned == total or settings.schedule == "constant" or not 0 < done < total:
        return ""
    return (
        f"train.{unit}s was {planned} and is now {total}. The {settings.schedule} schedule spans all {total} {unit}s, "
        f"as if the run had been that long from the start: the learning rate was {last:.3g} in {unit} {done} and is "
        f"{first:.3g} in {unit} {done + 1}."
    )


def finished_note(done: int, total: int, unit: str = "update") -> str:
    """Return a sentence about a resumed run that has nothing left to do, or the empty string."""
    if done < total:
        return ""
    return f"The run has made {done} of {total} {unit}s, so nothing is left to do."


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
