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
ASCENT = "exact_gradient"
"""A row of the table without samples: J climbed with its exact gradient, in as many steps of the same size."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # Dividing by a group's deviation is a bias; these are the same plugins without it.
    "grpo_centred": ("grpo", {"normalisation": "none"}),
    "gspo_centred": ("gspo", {"normalise_std": False}),
    "cispo_centred": ("cispo", {"normalise_std": False}),
}
"""Further rows of the table: an optimizer under another name, with other settings."""
MEASURES = ("objective", "gap", "reward", "kl", "total_variation", "gap_closed")


@dataclass
class ExactSuite:
    """What is run: every optimizer on every problem, at every beta, with every seed."""

    optimizers: list[str] = field(default_factory=list)
    """Names; empty runs all that are installed, some of them again with other settings, and what they are compared
    with."""
    betas: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    """Coefficients of the KL: small ones leave the reference far behind."""
    problems: list[str] = field(default_factory=lambda: list(KINDS))
    """random: rewards without any pattern; counting: how often one token comes."""
    seeds: int = 5
    """Each is a problem, a starting policy, and everything that is drawn."""
    updates: int = 200
    """Rollouts or batches to learn from."""
    groups: int = 64
    """Prompts per update."""
    group_size: int = 8
    """Answers per prompt; methods that learn from pairs get half as many pairs."""
    learning_rate: float = 3e-3
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
    installed = plugins.optimizers()
    variants = [name for name, (base, _) in VARIANTS.items() if base in installed]
    names = suite.optimizers or [*installed, *variants, ASCENT, BEST_OF]
    for name in names:
        if name not in (ASCENT, BEST_OF):
            plugins.get("optimizer", base_of(name))
    budget = (suite.updates, suite.groups, suite.group_size, suite.learning_rate)
    return [
        Task(name, problem, beta, seed, *budget)
        for name in names
        for problem in suite.problems
        for beta in suite.betas
        for seed in range(suite.seeds)
    ]


def run_task(
    task: Task, plugins: PluginManager | None = None, table: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train once and return the record: the task, and where the policy ended.

    ``gap`` is J(pi*) - J(pi), ``start_gap`` that of the reference; ``curve`` is the share of it closed on the way.
    ``table`` holds the optimizer's settings; left out, they are those that the suite file gives it.
    """
    import torch

    from lmrl.bench.exact_best_of import best_of_measures
    from lmrl.kl import KLSettings
    from lmrl.stages.rl_config import TrainSettings
    from lmrl.testing import counting_problem, random_problem
    from lmrl.testing.exact_training import ExactTrainer, ascend_exactly

    torch.set_num_threads(1)
    problem = {"random": random_problem, "counting": counting_problem}[task.problem](task.seed)
    start = problem.measure_of(problem.reference_table.log_probabilities, task.beta)
    head = {"suite": SUITE, **asdict(task), "status": "done", "start_gap": round(start.gap, 5)}
    if task.optimizer == BEST_OF:
        n, measures = best_of_measures(problem, task.beta)
        return head | {"n": n, **_rounded(measures), "seconds": 0.0}
    every = max(1, task.updates // 10)
    if task.optimizer == ASCENT:
        rate = task.learning_rate
        climbed = ascend_exactly(problem, beta=task.beta, updates=task.updates, learning_rate=rate, every=every)
        return head | _ended(climbed)
    spec = (plugins or PluginManager()).get("optimizer", base_of(task.optimizer))
    settings = build(spec.settings, settings_for(task) if table is None else table)
    train = TrainSettings(
        updates=task.updates,
        prompts_per_update=task.groups,
        group_size=task.group_size,
        learning_rate=task.learning_rate,
        value_learning_rate=2 * task.learning_rate,
        schedule="linear",
        max_gradient_norm=0.0,
        microbatch_tokens=2**31,  # however many answers there are, the model sees each distinct one once
    )
    trainer = ExactTrainer(problem, spec, settings, kl=KLSettings(beta=task.beta), train=train, seed=task.seed)
    return head | _ended(trainer.run(every)) | {"settings": settings_for(task)}


def _rounded(measures: Any) -> dict[str, float]:
    return {name: round(getattr(measures, name), 5) for name in MEASURES}


def _ended(curve: Any) -> dict[str, Any]:
    """Return what a record says of a curve."""
    shares = [round(value, 4) for value in curve.column("gap_closed")]
    return {**_rounded(curve.last), "curve": shares, "curve_updates": curve.updates, "seconds": round(curve.seconds, 2)}


def base_of(name: str) -> str:
    """Return the optimizer that a row of the table is of."""
    return VARIANTS[name][0] if name in VARIANTS else name


def settings_for(task: Task) -> dict[str, Any]:
    """Return an optimizer's settings: its recipe here, and the suite's beta where it has a coefficient of its own."""
    from lmrl.bench.kinds.base import substituted
    from lmrl.bench.suite import Suite

    suite = build(Suite, read_toml(Path(__file__).parent / "suites" / f"{SUITE}.toml"))
    base, changes = VARIANTS.get(task.optimizer, (task.optimizer, {}))
    recipe = suite.recipes.get(base)
    return substituted((recipe.optimizer if recipe else {}) | changes, task.beta)


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
