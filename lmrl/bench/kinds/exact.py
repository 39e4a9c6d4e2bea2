"""Suites of the kind `exact`: problems whose every answer is enumerated, and how much of the gap is closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from lmrl.bench.exact import BEST_OF, KINDS, Task, run_task
from lmrl.bench.kinds.base import Kind, Metric, Outcome, Run, substituted
from lmrl.bench.suite import Suite, merged
from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager


@dataclass
class ExactSettings:
    """Settings of the kind `exact`."""

    groups: int = 64
    """Prompts per update."""
    group_size: int = 8
    """Answers per prompt."""
    learning_rate: float = 3e-3
    """Peak learning rate; it falls linearly to 0."""


@dataclass
class ExactTask:
    """A task of the kind `exact`."""

    problem: str
    """random: rewards without any pattern; counting: how often one token comes."""

    def __post_init__(self) -> None:
        if self.problem not in KINDS:
            raise SettingsError(f"problem is {self.problem!r}; expected one of {', '.join(KINDS)}")


class ExactKind(Kind):
    """Runs ``lmrl.bench.exact`` for each cell. A seed is another problem and another starting policy."""

    measure = "gap_closed"
    curves = ("gap_closed",)
    metrics: ClassVar[Mapping[str, Metric]] = {
        "gap_closed": Metric("gap closed", high=1.0),
        "total_variation": Metric("total variation to the optimum", low=0.0, high=1.0, is_measure=False),
        "objective": Metric("objective", shown=False),
        "reward": Metric("reward"),
        "kl": Metric("KL to the reference", low=0.0, is_measure=False),
    }

    def able(self, suite: Suite, plugins: PluginManager) -> dict[str, str]:
        """Return every optimizer, and best-of-n, which is computed."""
        return {**dict.fromkeys(plugins.optimizers(), ""), BEST_OF: ""}

    def resolve(self, suite: Suite, run: Run, plugins: PluginManager) -> dict[str, Any]:
        """Return sizes, learning rate, problem and the optimizer's settings."""
        settings, task = self._built(suite, run)
        resolved = asdict(settings) | asdict(task)
        if run.beta <= 0:
            raise SettingsError(f"beta is {run.beta:g}; expected a number above 0, since 0 has no one optimum")
        if run.optimizer != BEST_OF:
            spec = plugins.get("optimizer", run.optimizer)
            resolved["optimizer"] = asdict(build(spec.settings, self._table(suite, run), f"recipes.{run.optimizer}"))
        return resolved

    def execute(self, suite: Suite, run: Run, folder: Path, plugins: PluginManager) -> Outcome:
        """Train once."""
        settings, task = self._built(suite, run)
        sizes = (suite.budget.amount, settings.groups, settings.group_size, settings.learning_rate)
        record = run_task(
            Task(run.optimizer, task.problem, run.beta, run.seed, *sizes), plugins, self._table(suite, run)
        )
        curve = {"update": record["curve_updates"], "gap_closed": record["curve"]} if "curve" in record else {}
        return Outcome({name: float(record[name]) for name in self.metrics}, curve)

    def _built(self, suite: Suite, run: Run) -> tuple[ExactSettings, ExactTask]:
        recipe = suite.recipes[run.optimizer].settings if run.optimizer in suite.recipes else {}
        settings = build(ExactSettings, merged(suite.settings, recipe), "settings")
        return settings, build(ExactTask, suite.tasks[run.task], f"tasks.{run.task}")

    def _table(self, suite: Suite, run: Run) -> dict[str, Any]:
        recipe = suite.recipes.get(run.optimizer)
        return substituted(recipe.optimizer, run.beta) if recipe else {}
