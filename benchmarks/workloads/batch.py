"""One whole batch of episodes, and where its time goes: sample, score, reference and values, update."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lmrl.rollout import Samples
from lmrl.sampling import Engine
from workloads.setting import Setting
from workloads.timing import Comparison, compare
from workloads.update import KL, Learner

SIDES = 1


def measure(setting: Setting, varying: bool, tick: Callable[[], None]) -> Comparison:
    """Measure sampled tokens per second of a whole batch, with the seconds of each stage."""
    learner = Learner(setting, varying)
    maker, stages = learner.maker, Stages()
    maker.engine = TimedEngine(maker.engine, stages)

    def run(number: int) -> int:
        with stages.timed("decode and score"):
            scored = maker.sample(learner.prompts, number)
        stages.seconds["decode and score"][-1] -= stages.seconds["sample"][-1]
        with stages.timed("reference"):
            reference = maker.reference_logprobs(scored.samples)
        with stages.timed("values and rewards"):
            rollout = maker.complete(scored, reference, KL.beta)
        with stages.timed("update"):
            learner.updater.update(rollout, KL.beta, 1, seed=number)
        return int(scored.samples.inputs.response_lengths.sum())

    name = "whole batch, varying length" if varying else "whole batch, full length"
    comparison = compare(name, "sampled tokens", {"lmrl": run}, setting.runs, None, tick)
    comparison.sides[0].stages = {stage: seconds[-setting.runs :] for stage, seconds in stages.seconds.items()}
    return comparison


class TimedEngine:
    """A decode engine whose time is a stage of its own."""

    def __init__(self, engine: Engine, stages: Stages) -> None:
        self.engine = engine
        self.stages = stages

    def generate(self, *arguments: Any) -> Samples:
        """Sample as the engine does."""
        with self.stages.timed("sample"):
            return self.engine.generate(*arguments)


class Stages:
    """Seconds spent in each named stage, run by run."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes."""
        start = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
