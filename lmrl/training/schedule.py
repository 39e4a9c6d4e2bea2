"""The learning rate over a run: a linear warm-up, then constant, a straight line, or a cosine; of each parameter group.

A group of a torch optimizer may say ``name``, ``role``, ``schedule``, ``warmup_updates`` and ``starts_at`` beside its
``lr``, as ``policy_adamw`` writes them; what it leaves out, or None, is as the run's settings say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lmrl.errors import SettingsError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lmrl.training.update_settings import TrainSettings

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


@dataclass(frozen=True)
class Rate:
    """Course of one group's learning rate: ``peak``, where it begins to move, its warm-up and its schedule."""

    name: str
    peak: float
    schedule: Any
    warmup_updates: int
    starts_at: int

    @classmethod
    def of(cls, group: Mapping[str, Any], number: int, settings: TrainSettings) -> Rate:
        """Return the course of a torch optimizer's group."""
        schedule, warmup, starts_at = (group.get(key) for key in ("schedule", "warmup_updates", "starts_at"))
        if starts_at is None:
            starts_at = 1 + (settings.critic_warmup_updates if group.get("role") == "policy" else 0)
        return cls(
            group.get("name") or str(number),
            group["lr"],
            settings.schedule if schedule is None else schedule,
            settings.warmup_updates if warmup is None else warmup,
            starts_at,
        )

    def factor(self, update: int, updates: int) -> float:
        """Return what the peak is multiplied by in update 1, 2, ... of a run of ``updates``; 0 before ``starts_at``."""
        before = self.starts_at - 1
        if update <= before:
            return 0.0
        if self.schedule == "constant" and update - before > self.warmup_updates:
            return 1.0
        return schedule_factor(update - before - 1, updates - before, self.warmup_updates, self.schedule)


class GroupRates:
    """Sets the learning rates of a torch optimizer's groups.

    Raises ``SettingsError`` if the value function should learn alone first and no group is the value function's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: TrainSettings) -> None:
        self.optimizer, self.settings = optimizer, settings
        groups = optimizer.param_groups
        if settings.critic_warmup_updates and not any(group.get("role") == "value" for group in groups):
            raise SettingsError(
                f"train.critic_warmup_updates is {settings.critic_warmup_updates}, but no parameter group is a value "
                "function's; choose an optimizer with a value function, and give the groups of a torch optimizer of "
                'your own the keys role="policy" and role="value"'
            )
        self.rates = [Rate.of(group, number, settings) for number, group in enumerate(groups)]
        self._still = [False] * len(groups)

    @property
    def schedule(self) -> str:
        """The first schedule that ends with the run, or "constant"."""
        return next((rate.schedule for rate in self.rates if rate.schedule != "constant"), "constant")

    def set(self, update: int) -> dict[str, float]:
        """Set the rates of this update, counted from 1, and return them as metrics.

        The first group's is ``learning_rate``; a group whose course is another one adds ``learning_rate_<name>``.
        """
        found: dict[str, float] = {}
        groups, first = self.optimizer.param_groups, self.rates[0]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate.peak * rate.factor(update, self.settings.updates)
            if rate != Rate(rate.name, first.peak, first.schedule, first.warmup_updates, first.starts_at):
                found[f"optimizer/learning_rate_{rate.name}"] = group["lr"]
        self._still = [update < rate.starts_at for rate in self.rates]
        return {"optimizer/learning_rate": groups[0]["lr"], **found}

    def moving(self) -> list[nn.Parameter]:
        """Return the parameters that this update moves, and drop the gradients of the others."""
        found: list[nn.Parameter] = []
        for group, still in zip(self.optimizer.param_groups, self._still, strict=True):
            if not still:
                found += group["params"]
                continue
            for parameter in group["params"]:
                parameter.grad = None
        return found


def learning_rate_factor(update: int, settings: TrainSettings) -> float:
    """Return what the run's own peak learning rate is multiplied by in update 1, 2, ..."""
    return Rate("run", 1.0, settings.schedule, settings.warmup_updates, 1).factor(update, settings.updates)
