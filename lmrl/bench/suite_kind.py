"""Interface of a kind of suite: its metrics, the optimizers that it can run, and one run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lmrl.bench.suite import Suite
from lmrl.plugins import PluginManager


@dataclass(frozen=True)
class SuiteRun:
    """One cell of a suite's grid with one seed."""

    task: str
    """Name of the task."""
    optimizer: str
    """Name of the optimizer."""
    beta: float
    """KL coefficient."""
    seed: int
    """Number of the seed."""


@dataclass(frozen=True)
class RunResult:
    """Result of a run."""

    metrics: dict[str, float]
    """Metrics by name."""
    curve: dict[str, list[float]] = field(default_factory=dict)
    """Columns of one length; they are drawn over the first one."""
    details: list[dict[str, Any]] = field(default_factory=list)
    """Further records of the run, which ``SuiteKind.details`` prints."""


@dataclass(frozen=True)
class Metric:
    """Name of a metric in reports."""

    label: str
    """Name in reports."""
    decimals: int = 3
    """Digits after the point."""
    low: float = -math.inf
    """The least possible value: no interval goes below it."""
    high: float = math.inf
    """The greatest possible value."""
    shown: bool = True
    """True if reports have a table of it."""
    is_measure: bool = True
    """True if a suite can compare it: more of it is better, in every task."""


class SuiteKind(ABC):
    """A kind of suite. It holds no state: runs happen in other processes."""

    metrics: ClassVar[Mapping[str, Metric]]
    """Metrics by name, in the order of reports."""
    measure: str
    """The metric that suites compare unless they say another. More of it is better."""
    curves: tuple[str, ...] = ()
    """Columns of curves that reports draw, each over the first column."""
    curve_over = "update"
    """Name of the first column of curves."""
    has_frontier = True
    """True if reports draw reward against KL: the metrics reward and kl are there."""
    against_kl: tuple[str, ...] = ()
    """Columns of curves that reports draw together over the root of the curve's column kl."""
    takes_beta = True
    """True if the kind uses the KL coefficient; otherwise suites have the one coefficient 0."""
    takes_recipes = True
    """True if the kind uses recipes."""
    units: tuple[str, ...] = ("updates",)
    """Units of budgets."""
    exclusive = False
    """True if a run needs the machine for itself: then --jobs is 1."""

    @abstractmethod
    def able(self, suite: Suite, plugins: PluginManager) -> dict[str, str]:
        """Return every optimizer that could be run with why it cannot be, or an empty string where it can."""

    @abstractmethod
    def resolve(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> dict[str, Any]:
        """Return the settings that a run's figures depend on, but for its seed.

        Raises ``SettingsError`` for whatever in the suite is wrong for this run. Everything that can be checked without
        running is checked here, for all runs before the first.
        """

    @abstractmethod
    def execute(self, suite: Suite, run: SuiteRun, folder: Path, plugins: PluginManager) -> RunResult:
        """Run once; ``folder`` keeps what runs share (pretrained models)."""

    def unread(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> dict[str, str] | None:
        """Return the settings of a run that nothing reads, each with what would read it; None where that is unknown."""
        del suite, run, plugins
        return {}

    def prepare(self, suite: Suite, folder: Path, tasks: list[str], progress: bool) -> None:
        """Make what the runs of these tasks share, before any of them."""
        del suite, folder, tasks, progress

    def lacking(self, suite: Suite, task: str) -> str:
        """Return what the user has to give before a task can be run; empty where nothing is lacking."""
        del suite, task
        return ""

    def details(self, details: Sequence[Mapping[str, Any]]) -> str:
        """Return Markdown of the records that a run kept besides its metrics; empty is nothing."""
        del details
        return ""

    def scale(self, suite: Suite, task: str) -> tuple[float, float]:
        """Return the least and the greatest value that the measure can have in a task: scores 0 and 1."""
        del suite, task
        return 0.0, 1.0


def substituted(table: Mapping[str, Any], beta: float) -> dict[str, Any]:
    """Return a recipe's settings with the run's coefficient where they say "beta" or "1/beta".

    Methods without a KL of their own in the reward have one in their loss.

        >>> substituted({"beta": "beta", "epochs": 2}, 0.1)
        {'beta': 0.1, 'epochs': 2}
    """
    values = {"beta": beta, "1/beta": 1 / beta if beta else 0.0}
    return {name: values.get(value, value) if isinstance(value, str) else value for name, value in table.items()}
