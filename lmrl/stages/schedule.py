"""The learning rate over a run: a linear warm-up, then constant, a straight line, or a cosine."""

from __future__ import annotations

import math
from typing import Literal

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
