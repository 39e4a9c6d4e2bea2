"""Results of the suites for the documentation: tables of all optimizers, and one's own rows and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from lmrl.bench.figures import GREY, INK, MARK, curve_of, draw, limits, paint_curves, root
from lmrl.bench.kinds import kind_named
from lmrl.bench.summary import Cell, Summary
from lmrl.plugins import PluginManager
from lmrl.statistics.intervals import Interval


def short(interval: Interval, decimals: int = 2) -> str:
    """Return a mean with its interval in few digits, or a dash where there is none.

    >>> short(Interval(0.512, 0.4, 0.6, 5))
    '0.51 [0.40, 0.60]'
    """
    if not interval.count:
        return "-"
    if not interval.is_finite:
        return f"{interval.mean:.{decimals}f}"
    return f"{interval.mean:.{decimals}f} [{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, cells)) + " |" for cells in rows)])


def suite_table(summary: Summary) -> str:
    """Return a suite's table: every optimizer's aggregate over all cells and its measure in each task.

    Where there are many cells, at each task's chief coefficient.
    """
    cells = (
        summary.cells if len(summary.cells) <= WIDEST else [(task, summary.chief_beta(task)) for task in summary.tasks]
    )
    rows = [
        [f"`{row.title}`", short(row.score), *_measured(summary, row.optimizer, cells, summary.measure)]
        for row in summary.rows
    ]
    table = markdown_table(["", "interquartile mean of scores", *map(_heading, cells)], rows)
    if all(row.complete for row in summary.rows):
        return table
    return f"{table}\n\n\\* lacks a task or coefficient, or runs of it failed: not to be ranked with the others."


WIDEST = 6
"""Cells that a table shows side by side."""


def frontier_table(summary: Summary) -> str:
    """Return the means of reward and KL at each coefficient, folded; empty where there is only one."""
    if len(summary.cells) == len(summary.tasks):
        return ""
    rows = []
    for name in summary.optimizers:
        found = [[summary.interval(name, cell, metric) for metric in ("reward", "kl")] for cell in summary.cells]
        cells = [f"{reward.mean:.2f} at {kl.mean:.1f}" if reward.count else "-" for reward, kl in found]
        rows.append([f"`{name}`", *cells])
    table = markdown_table(["", *map(_heading, summary.cells)], rows)
    head = "<details><summary>Reward at KL (nats per answer), by coefficient: the frontiers in figures</summary>"
    return f"\n\n{head}\n\n{table}\n\n</details>"


def _heading(cell: Cell) -> str:
    task, beta = cell
    return f"{task}, beta {beta:g}" if beta else task


def said_of(summary: Summary) -> str:
    """Return how many runs there are of how many seeds, and which failed."""
    counts: dict[float, set[int]] = {}
    lacking = {(name, task, beta) for task, name, beta, _ in summary.missing}
    for name in summary.optimizers:
        for task, beta in summary.cells:
            done = len(summary.done(name, (task, beta)))
            if done or (name, task, beta) in lacking:  # otherwise nobody asked for it
                counts.setdefault(beta, set()).add(done)
    seeds = {
        beta: f"{min(found)} to {max(found)}" if len(found) > 1 else f"{max(found)}" for beta, found in counts.items()
    }
    said = f"{len(summary.records)} runs of {summary.records[0].budget}; seeds of each: "
    if len(set(seeds.values())) == 1:
        said += next(iter(seeds.values()))
    else:
        said += ", ".join(f"{number} at beta {beta:g}" for beta, number in sorted(seeds.items()))
    said += (f"; {len(summary.failed)} failed" if summary.failed else "") + "."
    return said + (" Scores are 0 and 1 at the bounds of a task's reward." if summary.is_scaled else "")


def optimizer_rows(summaries: Sequence[Summary], names: Sequence[str]) -> str:
    """Return the rows of a page's optimizers: objective, reward and KL in each cell, and the place by objective."""
    rows = []
    for summary in summaries:
        for cell in summary.cells:
            means = {
                name: summary.interval(name, cell, summary.measure).mean
                for name in summary.optimizers
                if summary.done(name, cell)
            }
            for name in names:
                if name not in means:
                    continue
                place = f"{1 + sum(value > means[name] for value in means.values())} of {len(means)}"
                found = [summary.interval(name, cell, metric) for metric in (summary.measure, "reward", "kl")]
                shown = [short(found[0]), short(found[1]), f"{found[2].mean:.1f}"]
                rows.append([f"`{name}`", summary.suite, cell[0], f"{cell[1]:g}", *shown, place])
    head = ["", "suite", "task", "beta", "objective", "reward", "KL", "place"]
    return markdown_table(head, rows)


def reward_rows(summary: Summary) -> str:
    """Return the table of reward models: accuracy at each share of the labels, and what all of them come to."""
    shares = sorted({share for record in summary.records for share in record.curve.get("share", [])})
    head = [
        "rankings",
        "learns from",
        *(f"{Fraction(share).limit_denominator(99)} of the labels" if share < 1 else "all labels" for share in shares),
    ]
    rows = []
    for cell in summary.cells:
        found = {name: dict(curve_of(summary.done(name, cell), "accuracy")) for name in summary.optimizers}
        best = sorted((name for name in found if found[name]), key=lambda name: -found[name][shares[-1]].mean)
        for name in best:
            accuracies = [short(_bounded(found[name][share])) if share in found[name] else "-" for share in shares]
            rest = [summary.interval(name, cell, metric) for metric in REST]
            rows.append([cell[0], f"`{name}`", *accuracies, *(f"{x.mean:.3f}" if x.count else "-" for x in rest)])
    return markdown_table(
        [*head, "log loss", "calibration error", "Kendall's tau", "seeds"],
        [[*row, len(summary.done(row[1].strip("`"), (row[0], summary.betas(row[0])[0])))] for row in rows],
    )


EXACT_TABLES = {
    "gap_closed": "Share of the gap that is closed",
    "gap": "Gap J(pi*) - J(pi)",
    "total_variation": "Total variation distance to pi*",
}
"""The metrics of each problem's tables, and what they are called."""


def exact_tables(summary: Summary) -> str:
    """Return a Markdown table by coefficient for each problem and metric of the suite `exact`."""
    return "\n\n".join(
        f"{title}, `{problem}`:\n\n{_exact_table(summary, problem, metric)}"
        for problem in summary.tasks
        for metric, title in EXACT_TABLES.items()
    )


def _exact_table(summary: Summary, problem: str, metric: str) -> str:
    betas = summary.betas(problem)
    cells = [(problem, beta) for beta in betas]
    rows = [[f"`{row.title}`", *_measured(summary, row.optimizer, cells, metric, 3)] for row in summary.rows]
    return markdown_table(["optimizer", *(f"beta {beta:g}" for beta in betas)], rows)


def exact_rows(summary: Summary, names: Sequence[str]) -> str:
    """Return the table of an optimizer's page: a row for each name and problem, shares of the gap and the distance."""
    betas = summary.betas(summary.tasks[0])
    rows = []
    for name in names:
        for problem in summary.tasks:
            cells = [(problem, beta) for beta in betas]
            shares = _measured(summary, name, cells, "gap_closed", 3)
            means = [summary.interval(name, cell, "total_variation").mean for cell in cells]
            rows.append([f"`{name}`", problem, *shares, f"{min(means):.3f} to {max(means):.3f}"])
    return markdown_table(["optimizer", "problem", *(f"beta {beta:g}" for beta in betas), "distance"], rows)


def _measured(summary: Summary, name: str, cells: Sequence[Cell], metric: str, decimals: int = 2) -> list[str]:
    """Return a metric's mean in each cell with its interval within the metric's bounds."""
    bounds = kind_named(summary.records[0].kind, PluginManager()).metrics[metric]
    return [short(summary.interval(name, cell, metric, bounds.low, bounds.high), decimals) for cell in cells]


REST = ("log_loss", "calibration_error", "kendall_tau")


def _bounded(share: Interval) -> Interval:
    """Return the interval of a share within 0 and 1."""
    return replace(share, low=max(share.low, 0.0), high=min(share.high, 1.0)) if share.is_finite else share


def learning_curves(summaries: Sequence[Summary], name: str) -> str:
    """Return one SVG of an optimizer's learning curves: a row for each suite, a panel for each task.

    Each at its chief coefficient: the mean over seeds with its 95% band (Student's t), the other optimizers in grey.
    """
    columns = max(len(summary.tasks) for summary in summaries)
    size = (2.5 * columns, 2.0 * len(summaries))

    def paint(grid: Any) -> None:
        for summary, row in zip(summaries, np.reshape(grid, (len(summaries), columns)), strict=True):
            for axes in row[len(summary.tasks) :]:
                axes.set_visible(False)
            for task, axes in zip(summary.tasks, row, strict=False):
                _panel(axes, summary, task, name)

    return draw(size, paint, rows=len(summaries), columns=columns)


def overoptimization_rows(summary: Summary) -> str:
    """Return the table of what is left of the gold reward, by proxy and the optimizers that were run against it."""
    rows = []
    for cell in summary.cells:
        for name in (name for name in summary.optimizers if summary.done(name, cell)):
            best, end, lost, kl, accuracy = (
                summary.interval(name, cell, metric) for metric in ("best_gold", "gold", "lost", "kl", "proxy_accuracy")
            )
            figures = (best, end, f"{lost.mean:.2f}", f"{kl.mean:.1f}", f"{accuracy.mean:.2f}")
            rows.append([f"`{cell[0]}`", f"`{name}`", *figures])
    head = ["gold at its best", "gold at the end", "lost", "KL at the end", "right on held-out pairs"]
    return markdown_table(["proxy", "optimizer", *head], rows)


def overoptimization_curves(summary: Summary, policy: str = "rloo", chosen: str = "best_of_n") -> str:
    """Return one SVG, a panel for each proxy: gold and proxy of an optimizer over the root of the KL, a line per seed.

    Seeds are not averaged, since the gold reward turns in some of them only; the best of n has its mean.
    """
    columns = 4
    rows = -(-len(summary.cells) // columns)

    def paint(grid: Any) -> None:
        panels = np.reshape(grid, -1)
        for axes in panels[len(summary.cells) :]:
            axes.set_visible(False)
        for cell, axes in zip(summary.cells, panels, strict=False):
            for number, record in enumerate(summary.done(policy, cell)):
                across = [root(kl) for kl in record.curve["kl"]]
                labels = (f"proxy, {policy}", f"gold, {policy}") if number == 0 else (None, None)
                axes.plot(across, record.curve["proxy"], "--", color=GREY, linewidth=0.8, label=labels[0])
                axes.plot(across, record.curve["gold"], color=MARK, linewidth=1.2, label=labels[1])
            best = summary.done(chosen, cell)
            across = [root(kl.mean) for _, kl in curve_of(best, "kl")]
            axes.plot(
                across, [y.mean for _, y in curve_of(best, "gold")], color=INK, linewidth=1.6, label=f"gold, {chosen}"
            )
            axes.set_title(cell[0], fontsize=8.5)
            axes.set(xlabel="root of KL")
        heights = [axes.get_ylim() for axes in panels[: len(summary.cells)]]
        for axes in panels:
            axes.set_ylim(min(low for low, _ in heights), max(high for _, high in heights))
        panels[0].legend(fontsize=6.5, frameon=False)

    return draw((2.5 * columns, 2.2 * rows), paint, rows=rows, columns=columns)


def _panel(axes: Any, summary: Summary, task: str, name: str) -> None:
    beta = summary.chief_beta(task)
    column = kind_named(summary.records[0].kind, PluginManager()).curves[0]
    found = {other: curve_of(summary.done(other, (task, beta)), column) for other in summary.optimizers}
    found = {other: points for other, points in found.items() if points}
    paint_curves(axes, found.values(), found.get(name, []))
    means = [y.mean for points in found.values() for _, y in points]
    axes.set_title(f"{task}, beta {beta:g}", fontsize=8.5)
    axes.set(ylim=limits(means, min(points[0][1].mean for points in found.values())))
    axes.set(xlabel="update", ylabel=column)
