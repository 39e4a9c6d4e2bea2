"""Running a suite: what is there already is not run again, and every run that ends is one more line of the file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from lmrl import __version__
from lmrl.bench.circumstances import circumstances, machine, pathless
from lmrl.bench.kinds import kind_named
from lmrl.bench.processes import run_all
from lmrl.bench.records import Grid, Record, append, read_records, require_alike
from lmrl.bench.suite import Suite
from lmrl.bench.suite_kind import SuiteKind, SuiteRun
from lmrl.errors import LmrlError, SettingsError, unknown
from lmrl.locks import folder_lock
from lmrl.plugins import PluginManager

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A run with its resolved settings and their digest."""

    run: SuiteRun
    settings: dict[str, Any]
    digest: str


@dataclass(frozen=True)
class Job:
    """Job of a process that does one run."""

    suite: Suite
    planned: Planned
    folder: Path
    asked: str = ""
    grid: Grid = field(default_factory=Grid)


def plan(suite: Suite, plugins: PluginManager) -> list[Planned]:
    """Return every run of a suite, seed by seed so that a study that is stopped early has whole rounds.

    Raises ``SettingsError`` for an optimizer that is unknown or that the kind cannot run, and for every setting that
    is wrong for any run.
    """
    kind = kind_named(suite.kind, plugins)
    if suite.budget.unit not in kind.units:
        raise SettingsError(
            f"the suite {suite.name}: budget.unit is {suite.budget.unit!r}; suites of the kind {suite.kind} count "
            + " or ".join(kind.units)
        )
    if not kind.takes_beta and suite.betas != [0.0]:
        raise SettingsError(
            f"the suite {suite.name}: betas is {suite.betas}, but suites of the kind {suite.kind} have no coefficient "
            "of the KL; leave --beta out, or write betas = [0.0]"
        )
    if suite.recipes and not kind.takes_recipes:
        raise SettingsError(
            f"the suite {suite.name} has recipes ({', '.join(suite.recipes)}), but suites of the kind {suite.kind} "
            "have none; leave them out"
        )
    names = chosen_optimizers(suite, kind, plugins)
    planned = []
    for task in chosen_tasks(suite, kind):
        for name in names:
            for beta in suite.betas:
                run = SuiteRun(task, name, beta, 0)
                try:
                    settings = pathless(kind.resolve(suite, run, plugins))
                except SettingsError as error:
                    raise SettingsError(f"the suite {suite.name}, task {task!r}, {name}: {error}") from error
                planned.append(Planned(run, _writable(settings), digest_of(suite, run, settings)))
    return [
        Planned(SuiteRun(one.run.task, one.run.optimizer, one.run.beta, seed), one.settings, one.digest)
        for seed in range(suite.seeds)
        for one in planned
    ]


def chosen_tasks(suite: Suite, kind: SuiteKind) -> list[str]:
    """Return the tasks that nothing is lacking for; what is left out is said, and an error if it is all of them."""
    lacking = {task: kind.lacking(suite, task) for task in suite.tasks}
    said = [f"{task} ({reason})" for task, reason in lacking.items() if reason]
    if len(said) == len(lacking):
        raise SettingsError(f"the suite {suite.name} has nothing to run: " + "; ".join(said))
    for one in said:
        logger.warning("left out: %s", one)
    return [task for task, reason in lacking.items() if not reason]


def chosen_optimizers(suite: Suite, kind: SuiteKind, plugins: PluginManager) -> list[str]:
    """Return the names to run: those asked for, or all that can be; what is left out is said in the log."""
    able = able_rows(suite, plugins)
    if suite.measure.name and suite.measure.name not in kind.metrics:
        raise SettingsError(f"the suite {suite.name}: " + unknown("measure", suite.measure.name, kind.metrics))
    if suite.measure.name and not kind.metrics[suite.measure.name].is_measure:
        able_to = [name for name, metric in kind.metrics.items() if metric.is_measure]
        raise SettingsError(
            f"the suite {suite.name}: measure.name is {suite.measure.name!r}, of which more is not better, or not in "
            f"every task; expected one of {', '.join(able_to)}"
        )
    for name in suite.optimizers:
        if name not in able and name in plugins.names("optimizer"):
            plugins.get("optimizer", name)  # raises for a name that two plugins offer
        if name not in able:
            raise SettingsError(unknown("optimizer", name, able, plugins.absences()))
        if able[name]:
            raise SettingsError(f"{name} cannot be run in the suite {suite.name}: {able[name]}")
    if suite.optimizers:
        return list(dict.fromkeys(suite.optimizers))
    for name, reason in able.items():
        if reason:
            logger.info("left out: %s (%s)", name, reason)
    return [name for name, reason in able.items() if not reason]


def able_rows(suite: Suite, plugins: PluginManager) -> dict[str, str]:
    """Return the rows that could be run, those too that recipes make of optimizers, with why one cannot be."""
    kind, installed = kind_named(suite.kind, plugins), plugins.names("optimizer")
    able = kind.able(suite, plugins)
    if not kind.takes_recipes:
        return able
    found = dict(able)
    for name, recipe in suite.recipes.items():
        base = recipe.of or name
        if recipe.of and name in able:
            raise SettingsError(
                f"recipes.{name}.of is {recipe.of!r}, but {name} is an optimizer itself; give the recipe another name"
            )
        if base not in installed:
            said = unknown("optimizer", base, installed, plugins.absences())
            logger.warning("the suite %s: the recipe %s is left out. %s", suite.name, name, said)
        elif recipe.of:
            found[name] = able[base]
    return found


def _writable(settings: Any) -> Any:
    """Return settings as a result can hold them: JSON has no infinite numbers, so those become words."""
    if isinstance(settings, dict):
        return {name: _writable(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [_writable(value) for value in settings]
    return str(settings) if isinstance(settings, float) and not math.isfinite(settings) else settings


def digest_of(suite: Suite, run: SuiteRun, settings: dict[str, Any]) -> str:
    """Return the digest of everything that a run's figures depend on but its seed."""
    content = [suite.kind, run.task, run.optimizer, run.beta, suite.budget.unit, suite.budget.amount, settings]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def run_suite(
    suite: Suite,
    output: Path,
    *,
    plugins: PluginManager | None = None,
    jobs: int = 1,
    retry: bool = False,
    progress: bool = True,
    asked: str = "",
) -> list[Record]:
    """Run what ``output`` does not hold yet, append it line by line, and return the records of the suite's runs.

    A run that fails is a record that says so; with ``retry`` such runs are tried again. ``asked`` is how the command
    line names the suite, for reports. Raises ``SettingsError`` if the
    file holds results of another suite or budget, or of these runs under other settings.
    """
    from tqdm import tqdm

    if jobs < 1:
        raise SettingsError(f"jobs is {jobs}; expected a number of processes of at least 1")
    plugins = plugins or PluginManager()
    planned = plan(suite, plugins)
    if kind_named(suite.kind, plugins).exclusive:
        jobs = 1

    def taken(holder: str) -> None:
        raise SettingsError(f"{output.parent} is being written to by {holder}; wait for it, or give another --output")

    with folder_lock(output.parent, taken):
        known = _known(_blank(suite, plugins), output, planned, retry)
        todo = [
            one for one in planned if _key(one.run) not in known or (retry and known[_key(one.run)].status == "failed")
        ]
        if todo:
            tasks = list(dict.fromkeys(one.run.task for one in todo))
            kind_named(suite.kind, plugins).prepare(suite, output.parent, tasks, progress)
        grid = _grid([one.run for one in planned])
        jobs_to_do = [Job(suite, one, output.parent, asked, grid) for one in todo]
        bar = tqdm(
            total=len(planned), initial=len(planned) - len(todo), unit="run", desc=suite.name, disable=not progress
        )
        with bar:
            for record in run_all(attempt, jobs_to_do, jobs, plugins):
                append(output, record)
                known[record.key] = record
                failed = sum(one.status == "failed" for one in known.values())
                bar.set_postfix_str(f"{record.title}" + (f"; {failed} failed" if failed else ""))
                bar.update()
    return [known[_key(one.run)] for one in planned]


def _grid(runs: Sequence[SuiteRun]) -> Grid:
    return Grid(
        list(dict.fromkeys(run.task for run in runs)),
        list(dict.fromkeys(run.optimizer for run in runs)),
        list(dict.fromkeys(run.beta for run in runs)),
        1 + max(run.seed for run in runs),
    )


def _known(blank: Record, output: Path, planned: Sequence[Planned], retry: bool) -> dict[Any, Record]:
    """Return what the file holds; refuses what must not stand in one file with this suite's runs.

    What failed can be tried again with other settings, since it may be those that were wrong; but not where other seeds
    ended well with the old ones, with which it would stand in one mean.
    """
    wanted = {_key(one.run): one for one in planned}
    digests = {_key(one.run)[:3]: one.digest for one in planned}
    known = {}
    for record in read_records(output):
        require_alike(blank, record, str(output))
        again = record.status == "failed" and (retry or record.key not in wanted)
        now = digests.get(record.key[:3], record.digest)
        if record.digest != now and not again:
            made = record.versions.get("lmrl", __version__)
            since = "" if made == __version__ else f" by lmrl {made}, docs/migration.md lists what changed since"
            raise SettingsError(
                f"{output} holds {record.title} with other settings (digest {record.digest or 'unknown'}, now {now})"
                f"{since}; give another --output, or move the file away to run it anew"
            )
        known[record.key] = record
    return known


def _blank(suite: Suite, plugins: PluginManager) -> Record:
    measure = suite.measure.name or kind_named(suite.kind, plugins).measure
    return Record(suite.name, suite.kind, "", "", 0.0, 0, suite.budget, "done", measure=measure)


def _key(run: SuiteRun) -> tuple[str, str, float, int]:
    return run.task, run.optimizer, run.beta, run.seed


def attempt(job: Job, plugins: PluginManager) -> Record:
    """Do one run and return its record; a run that fails is one that says so, and is never averaged away."""
    import torch

    import lmrl.stages.rl.stage  # noqa: F401  # what is imported now is not counted as a run's time

    torch.set_num_threads(1)
    suite, run = job.suite, job.planned.run
    kind = kind_named(suite.kind, plugins)
    measure = suite.measure.name or kind.measure
    start = time.perf_counter()
    error, score, metrics = "", None, {}
    curve: dict[str, list[float]] = {}
    details: list[dict[str, Any]] = []
    try:
        with _only_warnings():
            outcome = kind.execute(suite, run, job.folder, plugins)
        metrics, curve, details = outcome.metrics, outcome.curve, outcome.details
        columns = ((f"{name} of the curve", value) for name, column in curve.items() for value in column)
        for name, value in chain(metrics.items(), columns):
            if not math.isfinite(value):
                raise ArithmeticError(f"{name} is {value}; expected a finite number")
        json.dumps(details, allow_nan=False)
        if measure not in metrics:
            raise LmrlError(f"there is no {measure} of this run; expected one of {', '.join(metrics)}")
        low, high = kind.scale(suite, run.task)
        score = (metrics[measure] - low) / (high - low)
    except KeyboardInterrupt:
        raise
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
        metrics, curve, details, score = {}, {}, [], None
    return Record(
        suite=suite.name,
        kind=suite.kind,
        task=run.task,
        optimizer=run.optimizer,
        beta=run.beta,
        seed=run.seed,
        budget=suite.budget,
        status="failed" if error else "done",
        digest=job.planned.digest,
        measure=measure,
        margin=suite.measure.margin,
        score=score,
        metrics=metrics,
        curve=curve,
        settings=job.planned.settings,
        details=details,
        asked=job.asked or suite.name,
        grid=job.grid,
        error=error,
        seconds=round(time.perf_counter() - start, 3),
        machine=machine(torch.get_num_threads()),
        **circumstances(),
    )


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Leave out the notes on data that every run would repeat."""
    library = logging.getLogger("lmrl")
    level = library.level
    library.setLevel(logging.WARNING)
    try:
        yield
    finally:
        library.setLevel(level)
