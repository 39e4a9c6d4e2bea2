"""Origin of a report's figures: machines, missing runs, comparisons, settings and calls."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lmrl.bench.compare import COLUMNS, VERDICTS, Comparison, compare, missing
from lmrl.bench.records import Grid, Record
from lmrl.bench.report_writer import Writer
from lmrl.bench.summary import Summary
from lmrl.errors import LmrlError

logger = logging.getLogger(__name__)
SHOWN = 40
"""Failed or missing runs, and differences, that are listed by name; more are counted."""


def what_ran(summary: Summary) -> str:
    """Return how many runs there are of what, with which budget and versions, and on which machines."""
    first = summary.records[0]
    machines = dict.fromkeys(_machine(record) for record in summary.records if record.machine)
    commits = [commit for commit in dict.fromkeys(record.commit for record in summary.records) if commit]
    versions = [f"{name} {version}" for name, version in list(first.versions.items())[:4]]
    tasks = "; ".join(f"{task} at beta {_listed(summary.betas(task))}" for task in summary.tasks)
    said = (
        f"{len(summary.records)} runs: {len(summary.rows)} optimizers, {len(summary.seeds)} seeds. {tasks}. "
        f"Everybody's budget: {first.budget}."
    )
    if versions:
        said += f" With {', '.join(versions)}" + (f", commit {', '.join(commits)}" if commits else "") + "."
    return said + (f" On {'; '.join(machines)}." if machines else "")


def _machine(record: Record) -> str:
    found = record.machine
    threads = found.get("threads", "?")
    per_run = f"{threads} thread" + ("s" if threads != 1 else "")
    return f"{found.get('processor', 'unknown processor')}, {found.get('cores', '?')} cores, {per_run} per run"


def add_absences(writer: Writer, summary: Summary) -> None:
    """List the runs that failed or are missing, if there are any."""
    failed, missing = summary.failed, summary.missing
    if not failed and not missing:
        return
    writer.heading("Not complete", 3)
    writer.text(
        f"{len(failed)} runs failed and {len(missing)} are missing; they are in no figure. An optimizer with a * has "
        "runs that failed, or none of some task or coefficient: its aggregate is not over the same as that of the "
        "rest, so it stands last."
    )
    rows = [["failed", record.title, record.error] for record in failed[:SHOWN]]
    if len(failed) > SHOWN:
        rows.append(["failed", f"{len(failed) - SHOWN} more", ""])
    groups: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for task, name, beta, seed in missing:
        groups.setdefault((task, name), []).append((beta, seed))
    for (task, name), places in groups.items():
        betas, seeds = sorted({beta for beta, _ in places}), sorted({seed for _, seed in places})
        said = f"{len(places)} runs: beta {_listed(betas)}; seed {_listed(seeds)}"
        rows.append(["missing", f"{task}, {name}", said])
    writer.table(["", "run", "why, or which"], rows)


def add_older(writer: Writer, summary: Summary, older: Sequence[Record]) -> None:
    """Say what got worse or better, or why nothing can be said, and what is gone."""
    writer.heading("Against the older results", 3)
    if not older:
        writer.text(f"The older results have nothing of the suite {summary.suite}.")
        return
    try:
        found = compare({summary.suite: older}, {summary.suite: summary.records})
    except LmrlError as error:  # toy sizes against full ones, other optimizers: no reason to show nothing
        logger.warning("%s is not compared: %s", summary.suite, error)
        writer.text(f"Not compared with the older results: {error}")
        return
    _add_comparison(writer, found)
    gone = missing(older, summary.records)
    if gone:
        writer.text(f"{len(gone)} runs of the older results are missing here, such as {gone[0]}.")


def _add_comparison(writer: Writer, comparisons: Sequence[Comparison]) -> None:
    counts = {verdict: sum(one.verdict == verdict for one in comparisons) for verdict in VERDICTS}
    writer.text(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) + ".")
    unequal = [one for one in comparisons if one.verdict != "equal"]
    rows = [one.cells for one in unequal[:SHOWN]]
    if rows:
        writer.table(COLUMNS, rows)
    if len(unequal) > SHOWN:
        writer.text(f"{len(unequal) - SHOWN} more are not shown: lmrl bench compare lists all of them.")


def add_recipes(writer: Writer, summary: Summary) -> None:
    """Say what each optimizer was given: its own settings, and of the others those that most do not have."""
    task, beta = summary.cells[0]
    there = {
        record.optimizer: _flat(record.settings) for record in reversed(summary.records) if record.cell == (task, beta)
    }
    values: dict[str, Counter[str]] = {}
    for settings in there.values():
        for key, value in settings.items():
            values.setdefault(key, Counter())[value] += 1
    common = {key: found.most_common(1)[0][0] for key, found in values.items() if 2 * found.total() > len(there)}
    rows = []
    for name in sorted(summary.optimizers):
        settings = next(r.settings for r in summary.records if r.optimizer == name).get("optimizer", {})
        own = settings.get(settings.get("name"), settings)
        others = {key: value for key, value in there.get(name, {}).items() if common.get(key, value) != value}
        rows.append([name, _pairs(own) or "none", _pairs(others)])
    writer.heading("Settings", 3)
    writer.text(f"What most have, of {task}{f' at beta {beta:g}' if beta else ''}: {_pairs(common)}.")
    columns = ["optimizer", "its settings in the first of its runs", "others than most have"]
    width = 3 if any(row[2] for row in rows) else 2
    writer.table(columns[:width], [row[:width] for row in rows])


def _pairs(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in settings.items())


def _flat(settings: Mapping[str, Any], where: str = "") -> dict[str, str]:
    """Return settings but the optimizer's own by their dotted names.

    >>> _flat({"train": {"updates": 3}, "optimizer": {"name": "ppo"}, "model": "stories"})
    {'train.updates': '3', 'model': 'stories'}
    """
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            if where or key != "optimizer":
                found |= _flat(value, f"{where}{key}.")
        else:
            found[where + key] = json.dumps(value) if isinstance(value, list) else _plain(value)
    return found


def commands(summary: Summary) -> list[str]:
    """Return the calls that make these results and this report."""
    asked = dict.fromkeys(record.asked or summary.suite for record in summary.records)
    betas = sorted({record.beta for record in summary.records})
    grids = summary.grids or [
        (one, Grid(summary.tasks, sorted(summary.optimizers), betas, len(summary.seeds))) for one in asked
    ]
    lines = [
        f"lmrl bench run {one} --tasks {','.join(grid.tasks)} --optimizers {','.join(grid.optimizers)} "
        f"--seeds {grid.seeds}" + (f" --beta {_listed(grid.betas, ',')}" if any(grid.betas) else "")
        for one, grid in grids
    ]
    return [*lines, f"lmrl bench report results/{summary.suite}.jsonl"]


def _listed(values: Sequence[float], between: str = ", ") -> str:
    """Return numbers as a list in words."""
    return between.join(f"{value:g}" for value in values)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
