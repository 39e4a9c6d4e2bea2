"""Suites of the kind `rl`: tasks trained by ``lmrl.rl`` and evaluated on held-out prompts.

Every optimizer begins with the same model and is given as many updates of as many answers. One that learns from data is
given as many answers of the starting model instead, judged by the task's reward. What is measured is the evaluation
that ``lmrl.rl`` makes of prompts that training never sees: reward, KL to the reference, and the objective that is
optimised, reward minus beta times KL.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lmrl.bench.suite import Suite, merged
from lmrl.bench.suite_kind import Metric, RunResult, SuiteKind, SuiteRun, substituted
from lmrl.config import build, resolved, to_toml, unread
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.stages.rl import RLConfig
from lmrl_suites.models import imported, model_identity, model_path, prepare_model


@dataclass
class PromptsOf:
    """Generated prompts of a task."""

    rows: str
    """module:function, called with seed= and count=; returns rows with a `prompt` and the columns of the reward."""
    count: int = 512
    """Prompts, the held-out ones included."""
    seed: int = 0
    """Their seed: the same for every run, whose own seed decides which of them are held out."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the function by name."""


@dataclass
class RLTask:
    """A table [tasks.NAME] of a suite of the kind `rl`."""

    model: str = "stories"
    """A table of [models], a folder, a hub id, or stories: the embedded model. Empty: the user must say."""
    prompts: PromptsOf | None = None
    """Generated prompts; left out, settings.prompts says where they come from."""
    low: float = 0.0
    """The reward that counts as a score of 0."""
    high: float = 1.0
    """The reward that counts as a score of 1."""
    settings: dict[str, Any] = field(default_factory=dict)
    """A fragment of a recipe of `lmrl rl`, put over the suite's."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SettingsError(f"low is {self.low:g} and high {self.high:g}; expected low < high")


class RLKind(SuiteKind):
    """Runs ``lmrl.rl`` for each cell, in a folder that is thrown away."""

    measure = "objective"
    curves = ("reward",)
    units = ("updates", "tokens")
    metrics: ClassVar[Mapping[str, Metric]] = {
        "objective": Metric("objective (reward - beta KL)"),
        "reward": Metric("reward on held-out prompts"),
        "kl": Metric("KL to the reference (nats per answer)", low=0.0, is_measure=False),
        "length": Metric("length (tokens)", 1, low=0.0),
        "start_reward": Metric("reward before training", shown=False),
        "sampled_tokens": Metric("tokens sampled in training", 0, shown=False),
        "tokens_per_second": Metric("tokens per second", 0, shown=False),
    }

    def able(self, suite: Suite, plugins: PluginManager) -> dict[str, str]:
        """Return every optimizer: those that learn from data are given data."""
        found = plugins.optimizers()
        return {name: "" if spec.needs.scores else "it reads no score" for name, spec in found.items()}

    def scale(self, suite: Suite, task: str) -> tuple[float, float]:
        """Return the task's bounds of the reward; a KL can put the objective below them."""
        found = self._task(suite, task)
        return found.low, found.high

    def unread(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> dict[str, str] | None:
        """See ``SuiteKind``; a suite that makes an optimizer's data reads more than a run of `lmrl rl`."""
        if suite.tasks[run.task].get("model") == "":
            return None
        samples = plugins.get("optimizer", suite.base_of(run.optimizer)).needs.experience == "rollouts"
        return unread(self.config(suite, run, Path(), plugins), plugins) if samples else {}

    def prepare(self, suite: Suite, folder: Path, tasks: list[str], progress: bool) -> None:
        """Pretrain the models of these tasks that are not there yet."""
        for task in tasks:
            prepare_model(self._task(suite, task).model, suite.models, folder, progress)

    def resolve(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> dict[str, Any]:
        """Return the sections of the resolved recipe that figures depend on, and what the model and prompts are."""
        import tomllib

        from lmrl.stages.rl.setup import configured_reward

        task = self._task(suite, run.task)
        if not task.model:
            raise SettingsError(
                f"tasks.{run.task}.model is empty: the suite needs a model of yours; give tasks.{run.task}.model=... "
                "with a folder or a hub id"
            )
        config = resolved(self.config(suite, run, Path(), plugins), plugins)
        configured_reward(config, plugins)  # so that a wrong name is an error before the first run
        table = tomllib.loads(to_toml(config))
        for name in ("run", "checkpoint", "trackers", "model"):
            table.pop(name, None)
        if plugins.get("optimizer", suite.base_of(run.optimizer)).needs.experience == "rollouts":
            table.pop("data", None)
        if task.prompts is not None:
            imported(task.prompts.rows, f"tasks.{run.task}.prompts.rows")
            table["prompts"] = {"rows": task.prompts.rows, "count": task.prompts.count, **task.prompts.arguments}
        table["model"] = model_identity(task.model, suite.models)
        return table

    def config(self, suite: Suite, run: SuiteRun, folder: Path, plugins: PluginManager) -> RLConfig:
        """Return the recipe of a run; raises ``SettingsError`` for what no recipe can say."""
        task = self._task(suite, run.task)
        spec = plugins.get("optimizer", suite.base_of(run.optimizer))
        recipe = suite.recipe_of(run.optimizer)
        table = merged(suite.settings, task.settings, recipe.settings)
        for section, name in (("train", "updates"), ("run", "seed"), ("kl", "beta"), ("optimizer", "name")):
            if name in table.get(section, {}):
                raise SettingsError(
                    f"settings.{section}.{name} is set, but the suite says it by its budget, seeds, betas and "
                    "optimizers; leave it out"
                )
        for name in ("model", "checkpoint", "trackers"):
            if name in table:
                raise SettingsError(f"settings.{name} is set, but a run of a suite is thrown away; leave it out")
        name, own = suite.base_of(run.optimizer), substituted(recipe.optimizer, run.beta)
        table = merged(
            table,
            {
                "run": {"seed": run.seed, "device": table.get("run", {}).get("device", "cpu")},
                "kl": {"beta": run.beta},
                "optimizer": {"name": name, name: own},
                "checkpoint": {"every": 0, "keep": 1},
                "trackers": [],
                "model": model_path(task.model, suite.models, folder),
            },
        )
        config = build(RLConfig, table)
        config.train.updates = self._updates(suite, config, plugins)
        if config.evaluation.prompts < 1:
            raise SettingsError("settings.evaluation.prompts is 0; expected at least one held-out prompt")
        if config.train.group_size < spec.needs.minimum_group_size:
            raise SettingsError(
                f"settings.train.group_size is {config.train.group_size}, but {run.optimizer} compares at least "
                f"{spec.needs.minimum_group_size} answers to a prompt"
            )
        return config

    def execute(self, suite: Suite, run: SuiteRun, folder: Path, plugins: PluginManager) -> RunResult:
        """Train once and evaluate."""
        config = self.config(suite, run, folder, plugins)
        rows = self._rows(self._task(suite, run.task))
        return RunResult(*_measured(self._trained(config, rows, plugins), run.beta))

    def _trained(
        self, config: RLConfig, rows: list[dict[str, Any]] | None, plugins: PluginManager
    ) -> list[dict[str, float]]:
        """Train in a folder that is thrown away, and return what was logged."""
        from lmrl.reporting.metrics import read_metrics
        from lmrl.stages.rl import rl

        experience = plugins.get("optimizer", config.optimizer.name).needs.experience
        with tempfile.TemporaryDirectory(prefix="lmrl-bench-") as place:
            config.run.folder = str(Path(place) / "run")
            data = None
            if experience != "rollouts":
                from lmrl_suites.offline import judged_answers

                data = judged_answers(config, rows, experience, plugins)
            result = rl(config, prompts=rows, data=data, plugins=plugins, progress=False)
            if result.interrupted:
                raise KeyboardInterrupt
            return read_metrics(Path(config.run.folder))

    def _task(self, suite: Suite, name: str) -> RLTask:
        return build(RLTask, suite.tasks[name], f"tasks.{name}")

    def _rows(self, task: RLTask) -> list[dict[str, Any]] | None:
        if task.prompts is None:
            return None
        function = imported(task.prompts.rows, "prompts.rows")
        rows: list[dict[str, Any]] = function(
            seed=task.prompts.seed, count=task.prompts.count, **task.prompts.arguments
        )
        return rows

    def _updates(self, suite: Suite, config: RLConfig, plugins: PluginManager) -> int:
        """Return how many updates the budget allows, every answer counted at its full length, greedy ones too."""
        if suite.budget.unit == "updates":
            return suite.budget.amount
        from lmrl.engines import Request, SamplingSpec

        spec, settings = config.optimizer.resolve(plugins)
        further = spec.build(settings).further_requests([Request([0], SamplingSpec(), seed=0)])
        rows = config.train.prompts_per_update * (config.train.group_size + len(further))
        updates = suite.budget.amount // (rows * config.sampling.max_new_tokens)
        if updates < 1:
            raise SettingsError(
                f"budget.amount is {suite.budget}, fewer than one update of {rows} answers of "
                f"{config.sampling.max_new_tokens} tokens; expected at least {rows * config.sampling.max_new_tokens}"
            )
        return updates


def _measured(lines: Sequence[dict[str, float]], beta: float) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the metrics of a run and its curve from what it logged."""
    evaluations = [line for line in lines if "evaluation/reward" in line]
    first, last = evaluations[0], evaluations[-1]
    seconds = sum(value for line in lines for name, value in line.items() if name in TIMES)
    tokens = sum(line["time/tokens_per_second"] * _seconds(line) for line in lines if "time/tokens_per_second" in line)
    metrics = {
        "objective": last["evaluation/reward"] - beta * last["evaluation/kl"],
        "reward": last["evaluation/reward"],
        "kl": last["evaluation/kl"],
        "length": last["evaluation/length"],
        "start_reward": first["evaluation/reward"],
        "sampled_tokens": sum(line.get("rollout/tokens", 0.0) for line in lines),
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }
    curve = {
        "update": [line["update"] for line in evaluations],
        "reward": [round(line["evaluation/reward"], 6) for line in evaluations],
        "kl": [round(line["evaluation/kl"], 6) for line in evaluations],
        "objective": [round(line["evaluation/reward"] - beta * line["evaluation/kl"], 6) for line in evaluations],
    }
    return metrics, curve


TIMES = ("time/sample_seconds", "time/score_seconds", "time/update_seconds")


def _seconds(line: dict[str, float]) -> float:
    return sum(line.get(name, 0.0) for name in TIMES)
