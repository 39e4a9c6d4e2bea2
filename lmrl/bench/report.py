"""Report of results as one HTML page that needs nothing else, and as Markdown.

Both are made of the same parts; the figures stand on the page alone. A run that failed or is missing is shown, and is
in no figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmrl.bench import figures
from lmrl.bench.kinds import kind_named
from lmrl.bench.records import Record
from lmrl.bench.report_origin import add_absences, add_older, add_recipes, commands, what_ran
from lmrl.bench.report_writer import Writer
from lmrl.bench.suite_kind import Metric, SuiteKind
from lmrl.bench.summary import Summary, summarise
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.statistics.aggregates import probability_of_improvement
from lmrl.statistics.intervals import Interval

PAGE, TEXT = "report.html", "report.md"


def write_report(
    results: Mapping[str, Sequence[Record]],
    folder: Path,
    plugins: PluginManager,
    against: Mapping[str, Sequence[Record]] | None = None,
    title: str = "Benchmarks",
) -> tuple[Path, Path]:
    """Write the page and the Markdown into a folder and return their paths."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; expected a folder for {PAGE} and {TEXT}")
    writer = Writer(title)
    for records in results.values():
        add_suite(writer, summarise(records), kind_named(records[0].kind, plugins), against)
    text = folder / TEXT
    path = writer.page.write(folder / PAGE)
    text.write_text("\n".join(writer.lines).rstrip() + "\n", encoding="utf-8")
    return path, text


def add_suite(
    writer: Writer, summary: Summary, kind: SuiteKind, against: Mapping[str, Sequence[Record]] | None = None
) -> None:
    """Add everything about one suite."""
    writer.heading(f"Suite {summary.suite}")
    writer.text(what_ran(summary))
    add_absences(writer, summary)
    if against is not None:
        add_older(writer, summary, against.get(summary.suite, []))
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
    add_recipes(writer, summary)
    writer.heading("To repeat it", 3)
    writer.commands(commands(summary))


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


def _add_against_kl(writer: Writer, summary: Summary, kind: SuiteKind) -> None:
    first, *others = kind.against_kl
    for task, beta in summary.cells:
        panels = figures.against_kl(summary, (task, beta), kind.against_kl)
        if panels:
            writer.page.add_heading(f"{first} and {', '.join(others)} against KL: {task}, beta {beta:g}", 3)
            writer.page.add_panels(
                panels, f"Means over seeds at each update, {first} with its 95% band; the others' {first} in grey."
            )


def _add_curves(writer: Writer, summary: Summary, kind: SuiteKind) -> None:
    for task in summary.tasks:
        beta = summary.chief_beta(task)
        where = f"{task}, beta {beta:g}" if any(summary.betas(task)) else task
        for column in kind.curves:
            panels = figures.curves(summary, (task, beta), column, kind.curve_over)
            if panels:
                said = f"{column.replace('_', ' ')} by {kind.curve_over}, {where}"
                writer.page.add_heading(f"Learning curves: {said}", 3)
                writer.page.add_panels(panels, "Means over seeds with 95% bands (Student's t); the others in grey.")


def _add_metrics(writer: Writer, summary: Summary, kind: SuiteKind) -> None:
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


def _add_details(writer: Writer, summary: Summary, kind: SuiteKind) -> None:
    """Show what runs of some kinds measured besides, of the first seed of each task."""
    for task in summary.tasks:
        kept = [record for record in summary.records if record.task == task and record.details]
        text = kind.details(kept[0].details) if kept else ""
        if text:
            writer.heading(f"In detail: {task}, seed {kept[0].seed}", 3)
            writer.page.add_commands(text.splitlines())
            writer.lines += [text, ""]


def _short(interval: Interval) -> str:
    return f"{interval.mean:.2f}" if interval.count else "none"
