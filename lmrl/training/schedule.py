"""The learning rate over a run: a linear warm-up, then constant, a straight line, or a cosine."""

from __future__ import annotations

import math
from typing import Any, Literal

Schedule = Literal["constant", "linear", "cosine"]


def schedule_factor(done: int, total: int, warmup: int, schedule: Schedule, final_share: float = 0.0) -> float:
    """Return what the peak learning rate is multiplied by after ``done`` of ``total`` steps.

    The warm-up rises linearly over ``warmup`` steps, the first of which already moves. ``linear`` and ``cosine``
    (Loshchilov and Hutter 2017, without restarts) then fall from 1 towards ``final_share``, and stay there.
    """
    if done < warmup:
        return (done + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (done - warmup) / max(1, total - warmup))
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
