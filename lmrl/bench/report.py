"""What results say, as one HTML page that needs nothing else, and as Markdown.

Both are made of the same parts; the figures stand on the page alone. A run that failed or is missing is shown, and is
in no figure.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmrl.bench import figures
from lmrl.bench.compare import Comparison, compare, missing
from lmrl.bench.kinds import Kind, Metric, kind_named
from lmrl.bench.records import Grid, Record
from lmrl.bench.statistics import probability_of_improvement
from lmrl.bench.summary import Summary, summarise
from lmrl.errors import LmrlError, SettingsError
from lmrl.html import Page
from lmrl.statistics import Interval

logger = logging.getLogger(__name__)
PAGE, TEXT = "report.html", "report.md"
SHOWN = 40
"""Failed or missing runs that are listed by name; more are counted."""


def write_report(
    results: Mapping[str, Sequence[Record]],
    folder: Path,
    against: Mapping[str, Sequence[Record]] | None = None,
    title: str = "Benchmarks",
) -> tuple[Path, Path]:
    """Write the page and the Markdown into a folder and return their paths."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; expected a folder for {PAGE} and {TEXT}")
    writer = Writer(title)
    for records in results.values():
        add_suite(writer, summarise(records), kind_named(records[0].kind), against)
    text = folder / TEXT
    path = writer.page.write(folder / PAGE)
    text.write_text("\n".join(writer.lines).rstrip() + "\n", encoding="utf-8")
    return path, text


class Writer:
    """Writes a page and its Markdown side by side."""

    def __init__(self, title: str) -> None:
        self.page = Page(title, light=True)
        self.lines = [f"# {title}", ""]

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading."""
        self.page.add_heading(text, level)
        self.lines += [f"{'#' * level} {text}", ""]

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.page.add_text(text)
        self.lines += [text, ""]

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str | int]], caption: str = "") -> None:
        """Add a table."""
        rows = [list(row) for row in rows]
        self.page.add_text(caption)  # a caption would be as wide as the table, and scroll with it
        self.page.add_table(columns, rows)
        self.lines += [
            *([caption, ""] if caption else []),
            "| " + " | ".join(columns) + " |",
            "|---" * len(columns) + "|",
        ]
        self.lines += ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in rows] + [""]

    def commands(self, commands: Sequence[str]) -> None:
        """Add commands."""
        self.page.add_commands(commands)
        self.lines += ["```sh", *commands, "```", ""]


def _markdown_cell(cell: str | int) -> str:
    """Return text that stays within its cell: an error can have several lines.

    >>> _markdown_cell("a | b\\nc")
    'a \\\\| b c'
    """
    return " ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;")


def add_suite(
    writer: Writer, summary: Summary, kind: Kind, against: Mapping[str, Sequence[Record]] | None = None
) -> None:
    """Add everything about one suite."""
    writer.heading(f"Suite {summary.suite}")
    writer.text(_what_ran(summary))
    _add_absences(writer, summary)
    if against is not None:
        _add_older(writer, summary, against.get(summary.suite, []))
    if not any(row.done for row in summary.rows):
        writer.text("No run ended well, so there is nothing more to show.")
        return
    measure = summary.measure.replace("_", " ")
    writer.heading(f"Which optimizer: {measure}", 3)
    if summary.is_scaled:
        writer.text(
            f"A score is the {measure} on the scale of its task: 0 and 1 at the bounds of the reward there. Tables of "
            f"the {measure} itself stand below."
        )
    _add_scores(writer, summary)
    _add_improvement(writer, summary)
    if len(summary.rows) > 1:
        writer.page.add_heading("Performance profiles", 3)
        writer.page.add_panels(
            figures.profiles(summary), "Share of runs above each score, with 95% bands; the others in grey."
        )
    if kind.has_frontier:
        _add_frontiers(writer, summary)
    if kind.against_kl:
        _add_against_kl(writer, summary, kind)
    _add_curves(writer, summary, kind)
    _add_metrics(writer, summary, kind)
    _add_details(writer, summary, kind)
    _add_recipes(writer, summary)
    writer.heading("To repeat it", 3)
    writer.commands(_commands(summary))


def _what_ran(summary: Summary) -> str:
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


def _add_absences(writer: Writer, summary: Summary) -> None:
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


def _add_older(writer: Writer, summary: Summary, older: Sequence[Record]) -> None:
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
    rows = [
        [
            one.verdict,
            one.title + (f": {one.note}" if one.note else ""),
            f"{one.old:.3f}",
            f"{one.new:.3f}",
            str(one.difference),
            f"{one.margin:g}",
        ]
        for one in unequal[:SHOWN]
    ]
    if rows:
        writer.table(["verdict", "what", "old", "new", "difference", "margin"], rows)
    if len(unequal) > SHOWN:
        writer.text(f"{len(unequal) - SHOWN} more are not shown: lmrl bench compare lists all of them.")


VERDICTS = ("failed", "worse", "undecided", "better", "equal")


def _add_scores(writer: Writer, summary: Summary) -> None:
    writer.page.add_drawing(
        figures.scores(summary), "Interquartile mean of scores over tasks, coefficients and seeds, 95%."
    )
    fast = any(not math.isnan(row.tokens_per_second) for row in summary.rows)
    columns = ["optimizer", "interquartile mean of scores", "runs", "failed", "missing", "seconds per run"]
    rows: list[list[str | int]] = []
    for row in summary.rows:
        cells: list[str | int] = [
            row.optimizer,
            str(row.score),
            row.done,
            row.failed,
            row.missing,
            f"{row.seconds:.1f}",
        ]
        cells[0] = row.title
        rows.append(cells + ([f"{row.tokens_per_second:,.0f}"] if fast else []))
    writer.table(
        columns + (["tokens per second"] if fast else []),
        rows,
        "Over all tasks and coefficients; stratified bootstrap over seeds, 95%",
    )


def _add_improvement(writer: Writer, summary: Summary) -> None:
    names = [row.optimizer for row in summary.rows if row.done]
    if len(names) < 2:
        return
    best = names[0]
    rows = [[name, str(probability_of_improvement(summary.scores(best), summary.scores(name)))] for name in names[1:]]
    writer.heading("Probability of improvement", 3)
    writer.page.add_drawing(
        figures.improvement(summary), "How often, in percent, a run of the row's optimizer beats one of the column's."
    )
    writer.table(["optimizer", f"chance that {best} is better"], rows)


def _add_frontiers(writer: Writer, summary: Summary) -> None:
    writer.heading("Reward against KL", 3)
    for task in summary.tasks:
        panels = figures.frontiers(summary, task)
        writer.page.add_panels(
            panels,
            f"{task}: reward over the root of the KL, one point per coefficient with 95% intervals over seeds; the "
            "cross is the model that all began with, the others are grey.",
        )
        betas = summary.betas(task)
        rows = [
            [
                name,
                *(
                    f"{_short(summary.interval(name, (task, beta), 'reward'))} at "
                    f"{_short(summary.interval(name, (task, beta), 'kl'))}"
                    for beta in betas
                ),
            ]
            for name in summary.optimizers
        ]
        writer.table(
            ["optimizer", *(f"beta {beta:g}" for beta in betas)], rows, f"{task}: reward at KL, means over seeds"
        )


def _add_against_kl(writer: Writer, summary: Summary, kind: Kind) -> None:
    first, *others = kind.against_kl
    for task, beta in summary.cells:
        panels = figures.against_kl(summary, (task, beta), kind.against_kl)
        if panels:
            writer.page.add_heading(f"{first} and {', '.join(others)} against KL: {task}, beta {beta:g}", 3)
            writer.page.add_panels(
                panels, f"Means over seeds at each update, {first} with its 95% band; the others' {first} in grey."
            )


def _add_curves(writer: Writer, summary: Summary, kind: Kind) -> None:
    for task in summary.tasks:
        beta = summary.chief_beta(task)
        where = f"{task}, beta {beta:g}" if any(summary.betas(task)) else task
        for column in kind.curves:
            panels = figures.curves(summary, (task, beta), column, kind.curve_over)
            if panels:
                said = f"{column.replace('_', ' ')} by {kind.curve_over}, {where}"
                writer.page.add_heading(f"Learning curves: {said}", 3)
                writer.page.add_panels(panels, "Means over seeds with 95% bands (Student's t); the others in grey.")


def _add_metrics(writer: Writer, summary: Summary, kind: Kind) -> None:
    for task in summary.tasks:
        betas = summary.betas(task)
        writer.heading(f"Figures: {task}", 3)
        for name, metric in kind.metrics.items():
            if not metric.shown:
                continue
            rows = []
            for optimizer in summary.optimizers:
                cells = [_cell(summary, optimizer, (task, beta), name, metric) for beta in betas]
                rows.append([optimizer, *cells])
            writer.table(
                ["optimizer", *(f"beta {beta:g}" for beta in betas)],
                rows,
                f"{metric.label}: means over seeds, 95% (Student's t)",
            )


def _cell(summary: Summary, optimizer: str, cell: tuple[str, float], name: str, metric: Metric) -> str:
    """Return a mean with its interval and, where seeds are lacking, how many there are."""
    found = summary.interval(optimizer, cell, name, metric.low, metric.high)
    if not found.count:
        return "none"
    decimals = metric.decimals
    said = f"{found.mean:.{decimals}f}"
    if found.is_finite:
        said += f" [{found.low:.{decimals}f}, {found.high:.{decimals}f}]"
    return said + (f" ({found.count} of {len(summary.seeds)} seeds)" if found.count < len(summary.seeds) else "")


def _add_details(writer: Writer, summary: Summary, kind: Kind) -> None:
    """Show what runs of some kinds measured besides, of the first seed of each task."""
    for task in summary.tasks:
        kept = [record for record in summary.records if record.task == task and record.details]
        text = kind.details(kept[0].details) if kept else ""
        if text:
            writer.heading(f"In detail: {task}, seed {kept[0].seed}", 3)
            writer.page.add_commands(text.splitlines())
            writer.lines += [text, ""]


def _add_recipes(writer: Writer, summary: Summary) -> None:
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


def _commands(summary: Summary) -> list[str]:
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


def _short(interval: Interval) -> str:
    return f"{interval.mean:.2f}" if interval.count else "none"


def _listed(values: Sequence[float], between: str = ", ") -> str:
    return between.join(f"{value:g}" for value in values)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
