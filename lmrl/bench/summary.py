"""Records of one suite put together: what each optimizer comes to, by task and coefficient, and what is not there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lmrl.bench.records import Grid, Key, Record
from lmrl.statistics.aggregates import Scores, interquartile_interval
from lmrl.statistics.intervals import Interval, mean_interval

Cell = tuple[str, float]


@dataclass(frozen=True)
class Row:
    """One optimizer over all tasks and coefficients."""

    optimizer: str
    score: Interval
    """Interquartile mean of the scores, with its stratified bootstrap interval."""
    done: int
    failed: int
    missing: int
    seconds: float
    """Mean of the runs that ended well."""
    tokens_per_second: float
    """NaN where the kind has no such thing."""
    complete: bool = True
    """True if there are runs for every task and coefficient, and none failed."""

    @property
    def title(self) -> str:
        """The name, with a star where the aggregate lacks a task or coefficient, or runs of it that failed."""
        return self.optimizer if self.complete else f"{self.optimizer} *"


@dataclass(frozen=True)
class Summary:
    """The records of one suite; ``rows`` are sorted, the best first."""

    records: Sequence[Record]
    rows: list[Row] = field(default_factory=list)

    @property
    def suite(self) -> str:
        """The suite's name."""
        return self.records[0].suite

    @property
    def measure(self) -> str:
        """The metric that scores are made of."""
        return self.records[0].measure

    @property
    def is_scaled(self) -> bool:
        """True if scores are not the measure itself, since a task has bounds other than 0 and 1."""
        return any(
            not math.isclose(record.score, record.metrics[self.measure], abs_tol=1e-9)
            for record in self.records
            if record.score is not None and self.measure in record.metrics
        )

    @cached_property
    def optimizers(self) -> list[str]:
        """Names, the best first."""
        return [row.optimizer for row in self.rows]

    @cached_property
    def tasks(self) -> list[str]:
        """Names in the order of the file."""
        return list(dict.fromkeys(record.task for record in self.records))

    @cached_property
    def seeds(self) -> list[int]:
        """All that stand in the file."""
        return sorted({record.seed for record in self.records})

    def betas(self, task: str) -> list[float]:
        """Return the coefficients of a task."""
        return sorted({record.beta for record in self.records if record.task == task})

    def chief_beta(self, task: str) -> float:
        """Return the coefficient with most of a task's runs, the one to show where there is place for one; the middle
        one of several.
        """
        betas = self.betas(task)
        runs = Counter(record.beta for record in self.records if record.task == task and record.status == "done")
        often = [beta for beta in betas if runs[beta] == max(runs.values(), default=0)]
        return often[len(often) // 2]

    @cached_property
    def cells(self) -> list[Cell]:
        """Every pair of task and coefficient."""
        return [(task, beta) for task in self.tasks for beta in self.betas(task)]

    def done(self, optimizer: str, cell: Cell) -> list[Record]:
        """Return the runs of an optimizer that ended well in a cell, by seed."""
        found = [
            record
            for record in self.records
            if record.optimizer == optimizer and record.cell == cell and record.status == "done"
        ]
        return sorted(found, key=lambda record: record.seed)

    def scores(self, optimizer: str) -> Scores:
        """Return the scores of the runs that ended well, with the numbers of their cells and tasks."""
        mine = [r for r in self.records if r.optimizer == optimizer and r.score is not None]
        return Scores(
            np.array([record.score for record in mine], dtype=np.float64),
            np.array([self.cells.index(record.cell) for record in mine], dtype=np.int64),
            np.array([self.tasks.index(record.task) for record in mine], dtype=np.int64),
            np.array([record.seed for record in mine], dtype=np.int64),
        )

    def interval(
        self, optimizer: str, cell: Cell, metric: str, low: float = -math.inf, high: float = math.inf
    ) -> Interval:
        """Return a metric's mean over seeds with Student's t interval, cut at what is possible."""
        found = mean_interval([r.metrics[metric] for r in self.done(optimizer, cell) if metric in r.metrics])
        if not found.is_finite:
            return found
        # A KL that sampling made negative keeps its mean inside of the interval.
        bounds = min(max(found.low, low), found.mean), max(min(found.high, high), found.mean)
        return Interval(found.mean, *bounds, found.count)

    @cached_property
    def failed(self) -> list[Record]:
        """Runs that failed."""
        return [record for record in self.records if record.status != "done"]

    @cached_property
    def grids(self) -> list[tuple[str, Grid]]:
        """The suite as the command line named it, and the runs that were asked for, of every call whose are no part of
        another's.
        """
        found: dict[str, list[Grid]] = {}
        for record in self.records:
            mine = found.setdefault(record.asked or self.suite, [])
            if record.grid.seeds and record.grid not in mine:
                mine.append(record.grid)
        runs = [(asked, grid, set(grid.runs())) for asked, grids in found.items() for grid in grids]
        return [
            (asked, grid)
            for place, (asked, grid, mine) in enumerate(runs)
            if not any(
                asked == other and (mine < theirs or (mine == theirs and place > number))
                for number, (other, _, theirs) in enumerate(runs)
            )
        ]

    @cached_property
    def missing(self) -> list[Key]:
        """Runs that were asked for and are not there.

        Where no record says what was: those of every optimizer, cell and seed that the file names.
        """
        there = {record.key for record in self.records}
        names = dict.fromkeys(record.optimizer for record in self.records)
        wanted = [key for _, grid in self.grids for key in grid.runs()] or [
            (task, name, beta, seed) for name in names for task, beta in self.cells for seed in self.seeds
        ]
        return [key for key in dict.fromkeys(wanted) if key not in there]


def summarise(records: Sequence[Record]) -> Summary:
    """Return the summary of one suite's records; optimizers that lack a task or coefficient, or failed, come last."""
    bare = Summary(records)
    rows = []
    for name in dict.fromkeys(record.optimizer for record in records):
        mine = [record for record in records if record.optimizer == name]
        done = [record for record in mine if record.status == "done"]
        speeds = [r.metrics["tokens_per_second"] for r in done if "tokens_per_second" in r.metrics]
        rows.append(
            Row(
                name,
                interquartile_interval(bare.scores(name)),
                len(done),
                len(mine) - len(done),
                sum(key[1] == name for key in bare.missing),
                mean([record.seconds for record in done]),
                mean(speeds),
                len(done) == len(mine) and {record.cell for record in mine} == set(bare.cells),
            )
        )
    rows.sort(key=lambda row: (not row.complete, -row.score.mean if row.done else math.inf))
    return Summary(records, rows)


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return sum(values) / len(values) if values else math.nan
