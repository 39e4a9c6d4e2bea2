"""The suite `exact`: optimizers trained on problems whose optimum is known, and how far from it they end.

Every optimizer gets as many updates of as many rows, with the same learning rate, unless its recipe says otherwise. A
result is one line of JSON; what a file holds already is not run again, so a study that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmrl.bench.processes import run_all
from lmrl.bench.records import end_half_written_line, read_lines
from lmrl.config import build, read_toml
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager

logger = logging.getLogger(__name__)

SUITE = "exact"
KINDS = ("random", "counting")
BEST_OF = "best_of_n"
"""A row of the table without training: the reference's best of n answers, by the true reward."""


@dataclass
class ExactSuite:
    """What is run: every optimizer on every problem, at every beta, with every seed."""

    optimizers: list[str] = field(default_factory=list)
    """Names; empty runs all that are installed and can learn here."""
    betas: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    """Coefficients of the KL: small ones leave the reference far behind."""
    problems: list[str] = field(default_factory=lambda: list(KINDS))
    """random: rewards without any pattern; counting: how often one token comes."""
    seeds: int = 5
    """Each is a problem, a starting policy, and everything that is drawn."""
    updates: int = 300
    """Rollouts or batches to learn from."""
    groups: int = 16
    """Prompts per update."""
    group_size: int = 4
    """Answers per prompt."""
    learning_rate: float = 5e-3
    """Peak learning rate; it falls linearly to 0."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.problems if name not in KINDS]
        if unknown:
            raise SettingsError(f"unknown problem {unknown[0]!r}; expected some of {', '.join(KINDS)}")
        if self.seeds < 1 or self.updates < 1 or self.groups < 1 or self.group_size < 2:
            raise SettingsError("seeds, updates and groups are expected to be at least 1, group_size at least 2")
        if not self.betas or any(beta <= 0 for beta in self.betas):
            raise SettingsError(f"beta is {self.betas}; expected numbers above 0, since 0 has no one optimum")


@dataclass(frozen=True)
class Task:
    """One run."""

    optimizer: str
    problem: str
    beta: float
    seed: int
    updates: int
    groups: int
    group_size: int
    learning_rate: float

    @property
    def key(self) -> str:
        """What tells runs apart in a file of results."""
        return json.dumps(asdict(self), sort_keys=True)


def tasks_of(suite: ExactSuite, plugins: PluginManager) -> list[Task]:
    """Return the runs of a suite. Raises ``SettingsError`` for an optimizer that is not installed."""
    names = suite.optimizers or [*_able(plugins), BEST_OF]
    for name in names:
        if name != BEST_OF:
            plugins.get("optimizer", name)
    budget = (suite.updates, suite.groups, suite.group_size, suite.learning_rate)
    return [
        Task(name, problem, beta, seed, *budget)
        for name in names
        for problem in suite.problems
        for beta in suite.betas
        for seed in range(suite.seeds)
    ]


def _able(plugins: PluginManager) -> list[str]:
    """Return the optimizers that can learn here; others are named in the log with the reason."""
    from lmrl.testing.exact_rollouts import require_served

    able = []
    for name, spec in plugins.optimizers().items():
        try:
            require_served(name, spec.needs)
        except SettingsError as error:
            logger.info("left out: %s", error)
        else:
            able.append(name)
    return able


def run_task(
    task: Task, plugins: PluginManager | None = None, table: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train once and return the record: the task, and where the policy ended.

    ``curve`` is the gap closed on the way. ``table`` holds the optimizer's settings; left out, they are those that the
    suite file gives it.
    """
    import torch

    from lmrl.bench.exact_best_of import best_of_measures
    from lmrl.kl import KLSettings
    from lmrl.stages.rl_config import TrainSettings
    from lmrl.testing import counting_problem, random_problem
    from lmrl.testing.exact_training import ExactTrainer

    torch.set_num_threads(1)
    problem = {"random": random_problem, "counting": counting_problem}[task.problem](task.seed)
    if task.optimizer == BEST_OF:
        n, measures = best_of_measures(problem, task.beta)
        return {"suite": SUITE, **asdict(task), "status": "done", "n": n, **asdict(measures), "seconds": 0.0}
    spec = (plugins or PluginManager()).get("optimizer", task.optimizer)
    settings = build(spec.settings, settings_for(task) if table is None else table)
    train = TrainSettings(
        updates=task.updates,
        prompts_per_update=task.groups,
        group_size=task.group_size,
        learning_rate=task.learning_rate,
        value_learning_rate=2 * task.learning_rate,
        schedule="linear",
        max_gradient_norm=0.0,
    )
    trainer = ExactTrainer(problem, spec, settings, kl=KLSettings(beta=task.beta), train=train, seed=task.seed)
    curve = trainer.run(every=max(1, task.updates // 20))
    return {
        "suite": SUITE,
        **asdict(task),
        "status": "done",
        **asdict(curve.last),
        "curve": [round(value, 5) for value in curve.column("gap_closed")],
        "curve_updates": curve.updates,
        "settings": asdict(settings),
        "seconds": round(curve.seconds, 3),
    }


def settings_for(task: Task) -> dict[str, Any]:
    """Return an optimizer's settings: its recipe here, and the suite's beta where it has a coefficient of its own."""
    from lmrl.bench.kinds.base import substituted
    from lmrl.bench.suite import Suite

    suite = build(Suite, read_toml(Path(__file__).parent / "suites" / f"{SUITE}.toml"))
    recipe = suite.recipes.get(task.optimizer)
    return substituted(recipe.optimizer, task.beta) if recipe else {}


def run_suite(
    suite: ExactSuite,
    output: Path,
    *,
    plugins: PluginManager | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run what ``output`` does not hold yet, append it line by line, and return all records of the suite."""
    from tqdm import tqdm

    plugins = plugins or PluginManager()
    tasks = tasks_of(suite, plugins)
    known = {record_key(record): record for record in read_records(output)}
    todo = [task for task in tasks if task.key not in known]
    output.parent.mkdir(parents=True, exist_ok=True)
    end_half_written_line(output)
    with output.open("a", encoding="utf-8") as file:
        bar = tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="run", desc=SUITE, disable=not progress)
        for record in run_all(_attempt, todo, jobs, plugins):
            file.write(json.dumps(record) + "\n")
            file.flush()
            known[record_key(record)] = record
            bar.set_postfix_str(f"{record['optimizer']}, beta {record['beta']:g}")
            bar.update()
        bar.close()
    return [known[task.key] for task in tasks]


def _attempt(task: Task, plugins: PluginManager) -> dict[str, Any]:
    """Return the run's record; a run that fails is one that says so, and is never averaged away."""
    try:
        return run_task(task, plugins)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        return {"suite": SUITE, **asdict(task), "status": "failed", "error": f"{type(error).__name__}: {error}"}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; lines that are cut off or no records are skipped, and said."""
    records = []
    for number, record in read_lines(path):
        try:
            record_key(record)
        except (KeyError, TypeError):
            logger.warning("%s, line %d is no result of this suite; it is left out", path, number)
            continue
        if record["suite"] != SUITE:
            raise SettingsError(
                f"{path}, line {number} is of the suite {record['suite']!r}; expected {SUITE!r}: give each suite a file"
            )
        records.append(record)
    return records


def record_key(record: dict[str, Any]) -> str:
    """Return the key of the task that a record is of."""
    return Task(**{name: record[name] for name in Task.__dataclass_fields__}).key


def failed(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of runs that failed."""
    return [record for record in records if record["status"] == "failed"]
