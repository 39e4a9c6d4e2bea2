"""Timing several sides of one comparison in turns, so that a machine's moods meet all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

SuiteRun = Callable[[int], int]
"""``run(number)`` does the work once and returns how much was done (tokens, steps, episodes)."""


@dataclass
class Side:
    """One contender's raw runs: how much was done in how many seconds, and what else is known of it."""

    name: str
    counts: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    """Floating-point operations of each run, where they are known."""
    stages: dict[str, list[float]] = field(default_factory=dict)
    """Seconds by part."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further numbers, for the record."""

    @property
    def rates(self) -> list[float]:
        """Amount per second of each run."""
        return [count / seconds for count, seconds in zip(self.counts, self.seconds, strict=True)]


@dataclass
class Comparison:
    """The sides of one workload; ratios are to ``baseline``. ``skipped`` says why a side is missing."""

    unit: str
    sides: list[Side]
    baseline: str | None
    skipped: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    """Label of one of several comparisons of a cell."""

    def ratios(self, side: Side) -> list[float]:
        """Speed of ``side`` in times the baseline, round by round."""
        base = next((other for other in self.sides if other.name == self.baseline), None)
        if base is None or base is side:
            return []
        return [mine / theirs for mine, theirs in zip(side.rates, base.rates, strict=True)]


@dataclass
class Host:
    """A side that cannot be called for one run: it goes through its own loop, and lets the others run in between.

    ``loop(between)`` calls ``between`` before its first run and after each, until that returns False; every run of it
    does ``count``.
    """

    name: str
    loop: Callable[[Callable[[], bool]], None]
    count: int


def compare(
    unit: str,
    sides: Mapping[str, SuiteRun],
    rounds: int,
    baseline: str | None,
    device: str = "cpu",
    variant: str = "",
    host: Host | None = None,
) -> Comparison:
    """Run the sides in turns, ``rounds`` times each after one round that is not counted; the host's turn is last."""
    clock = _Clock(device)
    found = {name: Side(name) for name in [*sides, *([host.name] if host else [])]}

    def add(name: str, number: int, count: int, seconds: float) -> None:
        if number >= 0:
            found[name].counts.append(count)
            found[name].seconds.append(seconds)

    def play(number: int) -> None:
        for name, run in sides.items():
            clock.start()
            count = run(number + 1)
            add(name, number, count, clock.stop())

    if host is None:
        for number in range(-1, rounds):
            play(number)
    else:
        numbers = iter(range(-1, rounds + 1))
        name, count = host.name, host.count

        def between() -> bool:
            number = next(numbers)
            if number >= 0:  # the host's run of the round before is over
                add(name, number - 1, count, clock.stop())
            if number == rounds:
                return False
            play(number)
            clock.start()
            return True

        host.loop(between)
    return Comparison(unit, list(found.values()), baseline if baseline in found else None, variant=variant)


class _Clock:
    """Reads the time when the device has nothing left to do."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.begun = 0.0

    def start(self) -> None:
        gc.collect()
        synchronise(self.device)
        self.begun = time.perf_counter()

    def stop(self) -> float:
        synchronise(self.device)
        return time.perf_counter() - self.begun


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device == "cuda":
        torch.cuda.synchronize()


def spread(values: list[float]) -> dict[str, float] | None:
    """Return median, least and greatest, or none of no values."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
