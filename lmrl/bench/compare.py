"""Did anything get worse? Two results of the same suites, decided by bounds of what counts as no difference.

For each task, optimizer and coefficient, and for each optimizer over those that both have, the difference of mean
scores has a Student's t interval: over paired seeds where both results have the same ones, else Welch's. It is worse if
it lies below minus the margin, equal if all of it lies within the margin, and undecided otherwise: one seed decides
nothing.
Worse and better are tested at 5% over all comparisons together (Holm 1979), so that a hundred comparisons are no
hundred chances for a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmrl.bench.records import Record, require_alike
from lmrl.errors import DataError
from lmrl.statistics.intervals import Interval

LEVEL = 0.05
ALL = "all tasks"
VERDICTS = ("failed", "worse", "undecided", "better", "equal")
"""In the order in which they are shown."""
COLUMNS = ("verdict", "suite, task, optimizer", "old", "new", "difference", "margin")
"""Names of a comparison's cells in tables."""
Group = tuple[str, str, float | None]
"""Task (or ``ALL``), optimizer, coefficient (None over all)."""


@dataclass(frozen=True)
class Comparison:
    """One difference of mean scores, new minus old."""

    suite: str
    task: str
    optimizer: str
    beta: float | None
    old: float
    new: float
    difference: Interval
    margin: float
    verdict: str
    """worse, better, equal or undecided; failed: runs that ended well before now fail."""
    note: str = ""

    @property
    def title(self) -> str:
        """The two cells of a comparison in words."""
        where = self.task if self.beta is None else f"{self.task}, beta {self.beta:g}"
        return f"{self.suite}, {where}, {self.optimizer}"

    @property
    def cells(self) -> list[str]:
        """The row of a table, in the order of ``COLUMNS``."""
        title = self.title + (f": {self.note}" if self.note else "")
        numbers = f"{self.old:.3f}", f"{self.new:.3f}", str(self.difference), f"{self.margin:g}"
        return [self.verdict, title, *numbers]

    @property
    def is_worse(self) -> bool:
        """True if this is a reason to stop."""
        return self.verdict in ("worse", "failed")


def compare(
    old: Mapping[str, Sequence[Record]], new: Mapping[str, Sequence[Record]], margin: float | None = None
) -> list[Comparison]:
    """Return the comparisons of two results by suite, what got worse first.

    ``margin`` takes the place of the suites' own. Raises ``DataError`` where nothing is in both, ``SettingsError`` for
    other budgets.
    """
    found: list[tuple[Comparison, float, float]] = []
    for suite in new:
        if suite in old:
            require_alike(old[suite][0], new[suite][0], f"the new result of {suite}")
            found += _of_suite(suite, old[suite], new[suite], margin)
    if not found:
        raise DataError(
            f"nothing to compare: the old result has {_said(old)}, the new one {_said(new)}; expected runs of the same "
            "suite, tasks and optimizers in both"
        )
    worse, better = _holm([p for _, p, _ in found]), _holm([p for _, _, p in found])
    decided = [
        one if one.verdict == "failed" else replace(one, verdict=_verdict(one, is_worse, is_better))
        for (one, _, _), is_worse, is_better in zip(found, worse, better, strict=True)
    ]
    return sorted(decided, key=lambda one: (VERDICTS.index(one.verdict), one.suite, one.difference.mean))


def missing(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """Return the titles of runs that ended well in the old result and are not in the new one at all."""
    there = {record.key for record in new}
    return [record.title for record in old if record.status == "done" and record.key not in there]


def _of_suite(
    suite: str, old: Sequence[Record], new: Sequence[Record], margin: float | None
) -> list[tuple[Comparison, float, float]]:
    before, after = _scores(old), _scores(new)
    for name in dict.fromkeys(record.optimizer for record in old):
        _add_all(before, after, name)
    failed = {record.key for record in new if record.status == "failed"}
    worked = {record.key for record in old if record.status == "done"}
    settings = {_group(record): record.digest for record in old}
    changed = {_group(record) for record in new if record.digest != settings.get(_group(record), record.digest)}
    found = []
    for group in before:
        task, optimizer, beta = group
        broken = [
            key
            for key in failed & worked
            if key[1] == optimizer and (beta is None or (key[0] == task and key[2] == beta))
        ]
        if group not in after and not broken:
            continue
        mine = after.get(group, {})
        difference, worse, better = _difference(before[group], mine, margin or new[0].margin)
        notes = [f"{len(broken)} runs that ended well before fail now"] if broken else []
        if group in changed:
            notes.append("under other settings than before")
        one = Comparison(
            suite=suite,
            task=task,
            optimizer=optimizer,
            beta=beta,
            old=_mean(before[group]),
            new=_mean(mine),
            difference=difference,
            margin=margin or new[0].margin,
            verdict="failed" if broken else "undecided",
            note="; ".join(notes),
        )
        found.append((one, worse, better))
    return found


def _scores(records: Sequence[Record]) -> dict[Group, dict[int, float]]:
    """Return the score of each seed, by task and coefficient."""
    found: dict[Group, dict[int, float]] = {}
    for record in records:
        if record.score is not None:
            found.setdefault(_group(record), {})[record.seed] = record.score
    return found


def _group(record: Record) -> Group:
    return record.task, record.optimizer, record.beta


def _add_all(before: dict[Group, dict[int, float]], after: dict[Group, dict[int, float]], name: str) -> None:
    """Add the means of each seed over the tasks and coefficients that both results have of an optimizer.

    Over the others as well it would be a comparison of tasks. Seeds that some of them lack are left out.
    """
    both = [group for group in before if group[1] == name and group in after]
    if len(both) < 2:
        return
    for scores in (before, after):
        whole = set.intersection(*(set(scores[group]) for group in both))
        if whole:
            scores[ALL, name, None] = {s: sum(scores[group][s] for group in both) / len(both) for s in sorted(whole)}


def _difference(old: Mapping[int, float], new: Mapping[int, float], margin: float) -> tuple[Interval, float, float]:
    """Return the difference with its interval, and the p values of not worse and of not better than the margin."""
    from scipy.stats import t

    same = sorted(set(old) & set(new))
    if set(old) == set(new) and len(same) > 1:
        each = np.array([new[seed] - old[seed] for seed in same])
        mean, error, freedom = float(each.mean()), float(each.std(ddof=1)) / math.sqrt(len(each)), len(each) - 1.0
    else:
        x, y = np.array(list(new.values())), np.array(list(old.values()))
        mean = float(x.mean() - y.mean()) if len(x) and len(y) else math.nan
        if min(len(x), len(y)) < 2:
            return Interval(mean, -math.inf, math.inf, min(len(x), len(y))), 1.0, 1.0
        parts = np.array([x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)])
        error = float(np.sqrt(parts.sum()))
        freedom = float(parts.sum() ** 2 / (parts**2 / [len(x) - 1, len(y) - 1]).sum()) if error else 1.0
    count = min(len(old), len(new))
    if error == 0:
        return Interval(mean, mean, mean, count), float(mean >= -margin), float(mean <= margin)
    half = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    worse, better = t.cdf((mean + margin) / error, freedom), t.sf((mean - margin) / error, freedom)
    return Interval(mean, mean - half, mean + half, count), float(worse), float(better)


def _holm(values: Sequence[float]) -> list[bool]:
    """Return which hypotheses are rejected at ``LEVEL`` for all together (Holm 1979)."""
    rejected = [False] * len(values)
    for place, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        if not values[index] <= LEVEL / (len(values) - place):
            break
        rejected[index] = True
    return rejected


def _verdict(one: Comparison, is_worse: bool, is_better: bool) -> str:
    if is_worse:
        return "worse"
    if is_better:
        return "better"
    return "equal" if -one.margin <= one.difference.low and one.difference.high <= one.margin else "undecided"


def _mean(scores: Mapping[int, float]) -> float:
    return sum(scores.values()) / len(scores) if scores else math.nan


def _said(results: Mapping[str, Sequence[Record]]) -> str:
    return "; ".join(
        f"{suite} ({', '.join(dict.fromkeys(record.optimizer for record in records))})"
        for suite, records in results.items()
    )
