"""Suites of the kind `exact`: problems whose every answer is enumerated, and how much of the gap is closed.

Every optimizer gets as many updates of as many answers, with the same learning rate, unless its recipe says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lmrl.bench.suite import Suite, merged
from lmrl.bench.suite_kind import Metric, RunResult, SuiteKind, SuiteRun, substituted
from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl_suites.exact_best_of import BEST_OF, best_of_measures

if TYPE_CHECKING:
    from lmrl.testing.exact import ExactMeasures, ExactProblem
    from lmrl.testing.exact_training import ExactCurve

ASCENT = "exact_gradient"
"""A row without samples: J climbed with its exact gradient, in as many steps of the same size."""


@dataclass
class ExactSettings:
    """Settings of the kind `exact`."""

    groups: int = 64
    """Prompts per update."""
    group_size: int = 8
    """Answers per prompt; methods that learn from pairs get half as many pairs."""
    learning_rate: float = 3e-3
    """Peak learning rate; it falls linearly to 0."""


@dataclass
class ExactTask:
    """A task of the kind `exact`."""

    problem: Literal["random", "counting"]
    """random: rewards without any pattern; counting: how often one token comes."""


class ExactKind(SuiteKind):
    """Trains on an enumerated problem. A seed is another problem and another starting policy."""

    measure = "gap_closed"
    curves = ("gap_closed",)
    metrics: ClassVar[Mapping[str, Metric]] = {
        "gap_closed": Metric("gap closed", high=1.0),
        "gap": Metric("gap to the optimum", low=0.0, is_measure=False),
        "total_variation": Metric("total variation to the optimum", low=0.0, high=1.0, is_measure=False),
        "objective": Metric("objective", shown=False),
        "reward": Metric("reward"),
        "kl": Metric("KL to the reference", low=0.0, is_measure=False),
        "start_gap": Metric("gap of the reference", low=0.0, shown=False, is_measure=False),
    }

    def able(self, suite: Suite, plugins: PluginManager) -> dict[str, str]:
        """Return every optimizer, and what they are compared with: the exact gradient, and the best of n."""
        return {**dict.fromkeys(plugins.optimizers(), ""), ASCENT: "", BEST_OF: ""}

    def resolve(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> dict[str, Any]:
        """Return sizes, learning rate, problem and the optimizer's settings."""
        settings, task = self._built(suite, run)
        resolved = asdict(settings) | asdict(task)
        if run.beta <= 0:
            raise SettingsError(f"beta is {run.beta:g}; expected a number above 0, since 0 has no one optimum")
        if run.optimizer not in (BEST_OF, ASCENT):
            resolved["optimizer"] = asdict(self._optimizer(suite, run, plugins)[1])
        return resolved

    def execute(self, suite: Suite, run: SuiteRun, folder: Path, plugins: PluginManager) -> RunResult:
        """Train once, or compute what needs no training."""
        from lmrl.testing import counting_problem, random_problem
        from lmrl.testing.exact_training import ascend_exactly

        settings, task = self._built(suite, run)
        problem = {"random": random_problem, "counting": counting_problem}[task.problem](run.seed)
        start = problem.measure_of(problem.reference_table.log_probabilities, run.beta)
        if run.optimizer == BEST_OF:
            n, measures = best_of_measures(problem, run.beta)
            return RunResult(_numbers(measures, start), details=[{"n": n}])
        updates = suite.budget.amount
        every = max(1, updates // 10)
        if run.optimizer == ASCENT:
            rate = settings.learning_rate
            curve = ascend_exactly(problem, beta=run.beta, updates=updates, learning_rate=rate, every=every)
        else:
            curve = self._trained(suite, run, problem, every, plugins)
        shares = [round(value, 4) for value in curve.column("gap_closed")]
        return RunResult(
            _numbers(curve.last, start), {"update": [float(update) for update in curve.updates], "gap_closed": shares}
        )

    def _trained(
        self, suite: Suite, run: SuiteRun, problem: ExactProblem, every: int, plugins: PluginManager
    ) -> ExactCurve:
        from lmrl.algorithms.kl import KLSettings
        from lmrl.testing.exact_training import ExactTrainer
        from lmrl.training.update_settings import TrainSettings

        settings, _ = self._built(suite, run)
        spec, own = self._optimizer(suite, run, plugins)
        train = TrainSettings(
            updates=suite.budget.amount,
            prompts_per_update=settings.groups,
            group_size=settings.group_size,
            learning_rate=settings.learning_rate,
            value_learning_rate=2 * settings.learning_rate,
            schedule="linear",
            max_gradient_norm=0.0,
            microbatch_tokens=2**31,  # however many answers there are, the model sees each distinct one once
        )
        trainer = ExactTrainer(problem, spec, own, kl=KLSettings(beta=run.beta), train=train, seed=run.seed)
        return trainer.run(every)

    def _built(self, suite: Suite, run: SuiteRun) -> tuple[ExactSettings, ExactTask]:
        table = merged(suite.settings, suite.recipe_of(run.optimizer).settings)
        return build(ExactSettings, table, "settings"), build(ExactTask, suite.tasks[run.task], f"tasks.{run.task}")

    def _optimizer(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> tuple[Any, Any]:
        """Return the optimizer's spec and its settings."""
        spec = plugins.get("optimizer", suite.base_of(run.optimizer))
        table = substituted(suite.recipe_of(run.optimizer).optimizer, run.beta)
        return spec, build(spec.settings, table, f"recipes.{run.optimizer}")


def _numbers(measures: ExactMeasures, start: ExactMeasures) -> dict[str, float]:
    """Return the metrics of where a run ended."""
    return {name: round(float(value), 5) for name, value in asdict(measures).items()} | {
        "start_gap": round(float(start.gap), 5)
    }
