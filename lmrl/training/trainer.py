"""The training loop that every kind of experience shares: draw from a source, learn, count.

Open this to train with your own source of experience: ``Trainer(source, updater).steps(100)``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmrl.algorithms.experience import Experience
from lmrl.algorithms.rollout import Rollout
from lmrl.training.update import Updater


@dataclass(frozen=True)
class Drawn:
    """Experience of one update, with metrics of it."""

    experience: Rollout | Experience
    """Rows to learn from, of this rank."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics to log, by name."""
    tokens: float = 0.0
    """Sampled tokens over all ranks; 0 logs no throughput."""
    rows: int = 0
    """Rows over all ranks, which an adaptive KL coefficient is scaled by."""
    histograms: Mapping[str, Any] = field(default_factory=dict)
    """Distributions to log, by name."""


class Source(Protocol):
    """Source of experience: sampled responses, stored data, episodes of a task, an enumerated problem."""

    def next(self, updates: int) -> Drawn:
        """Return this rank's experience of the next update, after ``updates`` updates."""
        ...


class Trainer:
    """Learns from a source, update by update.

    ``drawn`` is called with each batch before it is learned from, ``updated`` with the number of each update after its
    optimizer steps. An adaptive KL coefficient follows the metric ``rollout/kl``.
    """

    def __init__(
        self,
        source: Source,
        updater: Updater,
        drawn: Callable[[Drawn], None] | None = None,
        updated: Callable[[int], None] | None = None,
    ) -> None:
        self.source, self.updater = source, updater
        self.drawn, self.updated = drawn, updated

    @property
    def updates(self) -> int:
        """The number of updates so far, which is the version of the policy."""
        return self.updater.updates

    def step(self) -> dict[str, float]:
        """Draw experience, learn from it once, and return the metrics."""
        start = time.perf_counter()
        drawn = self.source.next(self.updates)
        if self.drawn is not None:
            self.drawn(drawn)
        ready = time.perf_counter()
        metrics = {**drawn.metrics, **self.updater.learn(drawn.experience)}
        if "rollout/kl" in metrics:
            self.updater.controller.adapt(metrics["rollout/kl"], drawn.rows)
        if self.updated is not None:
            self.updated(self.updates)
        end = time.perf_counter()
        metrics["time/update_seconds"] = end - ready
        if drawn.tokens:
            metrics["time/tokens_per_second"] = drawn.tokens / (end - start)
        return metrics

    def steps(self, count: int) -> Iterator[dict[str, float]]:
        """Yield the metrics of each of ``count`` updates."""
        for _ in range(count):
            yield self.step()
