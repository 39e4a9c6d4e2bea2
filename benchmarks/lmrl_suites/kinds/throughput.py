"""Suites of the kind `throughput`: what ``lmrl_suites.throughput`` measures, as runs that can be kept and compared.

A task is a set of workloads, a seed a repetition, and the one thing that is run is called lmrl. Runs have the machine
to themselves, whatever --jobs says. The score is the mean logarithm of lmrl's figures (rates, one over the peak of
memory, the reward that is learned), so that differences are shares: 0.05 is five percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from lmrl.bench.suite import Suite, merged
from lmrl.bench.suite_kind import Metric, RunResult, SuiteKind, SuiteRun
from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager

MODULE = "lmrl_suites.throughput"
OURS = "lmrl"


class ThroughputKind(SuiteKind):
    """Runs ``measure(settings, progress)`` and keeps every record of it."""

    measure = "log_rate"
    has_frontier = False
    takes_beta = False
    takes_recipes = False
    exclusive = True
    metrics: ClassVar[Mapping[str, Metric]] = {"log_rate": Metric("mean logarithm of lmrl's figures")}

    def able(self, suite: Suite, plugins: PluginManager) -> dict[str, str]:
        """Return the library itself: no optimizer is chosen here."""
        return {OURS: ""}

    def resolve(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> dict[str, Any]:
        """Return the settings of the measurement."""
        return asdict(self._settings(suite, run))

    def execute(self, suite: Suite, run: SuiteRun, folder: Path, plugins: PluginManager) -> RunResult:
        """Measure once."""
        found = list(_module().measure(self._settings(suite, run), False))
        logs = [math.log(figure) for figure in map(_own_figure, found) if figure > 0]
        if not logs:
            raise SettingsError("nothing that was measured has a figure of lmrl; expected at least one such workload")
        return RunResult({"log_rate": sum(logs) / len(logs)}, details=found)

    def details(self, details: Sequence[Mapping[str, Any]]) -> str:
        """Return the table of one run's records."""
        return str(_module().markdown(list(details)))

    def _settings(self, suite: Suite, run: SuiteRun) -> Any:
        return build(_module().ThroughputSettings, merged(suite.settings, suite.tasks[run.task]), f"tasks.{run.task}")


def _module() -> Any:
    try:
        return import_module(MODULE)
    except ModuleNotFoundError as error:
        raise SettingsError(f"suites of the kind throughput need {MODULE}, which is not installed: {error}") from error


def _own_figure(record: Mapping[str, Any]) -> float:
    """Return what a record of lmrl's own side says, more of it being better: its median rate, 1 / peak bytes, a reward.

    0 is no figure.
    """
    if not str(record.get("side", "")).startswith(OURS):
        return 0.0
    rate = record.get("rate")
    median = rate.get("median") if isinstance(rate, Mapping) else rate
    if median:
        return float(median)
    return 1 / record["peak_bytes"] if record.get("peak_bytes") else float(record.get("last_mean", 0.0))
