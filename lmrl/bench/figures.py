"""Figures of a report as SVG: small panels, one per optimizer, that a page lays out as the screen is wide.

In a panel of curves or of a frontier its own optimizer is in colour and the others are grey, so that twenty of them
can be told apart.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lmrl.bench.records import Record
from lmrl.bench.summary import Cell, Summary
from lmrl.statistics.aggregates import performance_profile, probability_of_improvement
from lmrl.statistics.intervals import Interval, mean_interval

INK, GREY, MARK, BAND = "#1a1a1a", "#c4c8cc", "#1f5fbf", "#9dbfe8"
SMALL = (3.0, 2.2)
Points = list[tuple[float, Interval]]
PATHS, DIGITS = re.compile(r' d="[^"]*"'), re.compile(r"(\.\d)\d+")
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "text.color": INK,
    "axes.labelcolor": INK,
    "svg.hashsalt": "lmrl",
}


def draw(size: tuple[float, float], paint: Callable[[Any], None], rows: int = 1, columns: int = 1) -> str:
    """Return the SVG of a figure that ``paint`` fills: one set of axes, or rows of them where there is more than one.

    The same data give the same text.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots(rows, columns, squeeze=False) if rows * columns > 1 else figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    # A tenth of a point is less than anybody sees, and half of the file.
    return PATHS.sub(lambda path: DIGITS.sub(r"\1", path[0]), text[text.index("<svg") :])


def scores(summary: Summary) -> str:
    """Draw the interquartile mean of every optimizer with its interval, the best on top."""
    rows = [row for row in summary.rows if row.done][::-1]

    means = [row.score.mean for row in rows]
    lows = [row.score.low if row.score.is_finite else row.score.mean for row in rows]
    middle, high = float(np.median(means)), max(means)
    # One optimizer that fell far below must not press all others into a line.
    floor = max(min(lows), middle - 3 * (high - middle + 0.1)) - 0.03

    def paint(axes: Any) -> None:
        for place, row in enumerate(rows):
            if row.score.mean < floor:
                axes.text(
                    floor, place, f" \N{LEFTWARDS ARROW} {row.score.mean:.2f}", va="center", fontsize=8, color=MARK
                )
                continue
            if row.score.is_finite:
                axes.plot([max(row.score.low, floor), row.score.high], [place, place], color=BAND, linewidth=5)
            axes.plot([row.score.mean], [place], "o", color=MARK, markersize=4)
        axes.set_yticks(range(len(rows)), [row.title for row in rows])
        axes.set(xlim=(floor, None), ylim=(-0.6, len(rows) - 0.4))
        axes.set_xlabel("interquartile mean of scores")
        axes.grid(axis="x", alpha=0.3)

    return draw((4.6, 0.24 * len(rows) + 0.8), paint)


def profiles(summary: Summary) -> list[tuple[str, str]]:
    """Return for each optimizer its performance profile: the share of runs above a score, over all scores."""
    names = [row.optimizer for row in summary.rows if row.done]
    pooled = np.concatenate([summary.scores(name).values for name in names])
    low, high = np.quantile(pooled, [0.1, 1.0])
    thresholds = np.linspace(min(low, high - 0.1), high + 0.02 * max(high - low, 0.1), 60)
    found = {name: performance_profile(summary.scores(name), thresholds) for name in names}
    panels = []
    for name in names:

        def paint(axes: Any, name: str = name) -> None:
            for other in names:
                axes.plot(thresholds, [p.mean for p in found[other]], color=GREY, linewidth=0.7)
            mine = found[name]
            axes.fill_between(thresholds, [p.low for p in mine], [p.high for p in mine], color=BAND, alpha=0.6, lw=0)
            axes.plot(thresholds, [p.mean for p in mine], color=MARK, linewidth=1.6)
            axes.set(ylim=(-0.02, 1.02), xlabel="score", ylabel="runs above", title=name)

        panels.append((name, draw(SMALL, paint)))
    return panels


def improvement(summary: Summary) -> str:
    """Draw the chance that a run of the row's optimizer beats a run of the column's."""
    names = [row.optimizer for row in summary.rows if row.done]
    table = np.full((len(names), len(names)), np.nan)
    for i, mine in enumerate(names):
        for j in range(i):
            found = probability_of_improvement(summary.scores(mine), summary.scores(names[j]), resamples=1)
            table[i, j], table[j, i] = found.mean, 1 - found.mean

    def paint(axes: Any) -> None:
        axes.imshow(table, cmap="RdBu", vmin=0, vmax=1)
        for i in range(len(names)):
            for j in range(len(names)):
                if not math.isnan(table[i, j]):
                    strong = abs(table[i, j] - 0.5) > 0.35
                    colour = "white" if strong else INK
                    axes.text(j, i, f"{100 * table[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)

    side = 0.3 * len(names) + 1.3
    return draw((side, side), paint)


def curves(summary: Summary, cell: Cell, column: str, over: str = "update") -> list[tuple[str, str]]:
    """Return for each optimizer its learning curve in a cell: the mean over seeds and its 95% band."""
    label = column.replace("_", " ")
    found = {name: curve_of(summary.done(name, cell), column) for name in summary.optimizers}
    found = {name: points for name, points in found.items() if points}
    if not found:
        return []
    begun = min(points[0][1].mean for points in found.values())
    vertical = limits([interval.mean for points in found.values() for _, interval in points], begun)
    panels = []
    for name, points in found.items():

        def paint(axes: Any, name: str = name, points: list[tuple[float, Interval]] = points) -> None:
            paint_curves(axes, found.values(), points)
            axes.set(xlabel=over, ylabel=label, title=name, ylim=vertical)

        panels.append((name, draw(SMALL, paint)))
    return panels


def paint_curves(axes: Any, others: Iterable[Points], mine: Points) -> None:
    """Paint one curve with its 95% band, where every point has one, over others in grey."""
    for other in others:
        axes.plot([x for x, _ in other], [y.mean for _, y in other], color=GREY, linewidth=0.7)
    steps = [x for x, _ in mine]
    if all(y.is_finite for _, y in mine):
        axes.fill_between(steps, [y.low for _, y in mine], [y.high for _, y in mine], color=BAND, alpha=0.6, lw=0)
    axes.plot(steps, [y.mean for _, y in mine], color=MARK, linewidth=1.6)


def curve_of(records: Sequence[Record], column: str) -> list[tuple[float, Interval]]:
    """Return a curve's points: its first column, and mean over the seeds that have it with Student's t interval."""
    values: dict[float, list[float]] = {}
    for record in records:
        if column in record.curve:
            first = next(iter(record.curve.values()))
            for place, value in zip(first, record.curve[column], strict=True):
                values.setdefault(place, []).append(value)
    return [(place, mean_interval(values[place])) for place in sorted(values)]


def frontiers(summary: Summary, task: str) -> list[tuple[str, str]]:
    """Return for each optimizer its frontier in a task: reward over the root of the KL, a point per coefficient.

    Bars are 95% intervals over seeds in both directions; the cross is the model that everybody began with.
    """
    betas = summary.betas(task)
    found = {}
    for name in summary.optimizers:
        points = [
            (beta, summary.interval(name, (task, beta), "kl", low=0.0), summary.interval(name, (task, beta), "reward"))
            for beta in betas
            if summary.done(name, (task, beta))
        ]
        if points:
            found[name] = points
    starts = [r.metrics["start_reward"] for r in summary.records if r.task == task and "start_reward" in r.metrics]
    rewards = [reward.mean for points in found.values() for _, _, reward in points]
    start = sum(starts) / len(starts) if starts else min(rewards, default=0.0)
    across = limits([root(kl.mean) for points in found.values() for _, kl, _ in points], 0.0)
    along = limits(rewards, start)
    panels = []
    for name, points in found.items():

        def paint(axes: Any, name: str = name, points: list[tuple[float, Interval, Interval]] = points) -> None:
            for other in found.values():
                others = [root(kl.mean) for _, kl, _ in other], [r.mean for _, _, r in other]
                axes.plot(*others, "o-", color=GREY, lw=0.7, ms=2)  # a single coefficient draws no line
            if starts:
                axes.plot([0], [start], "x", color=INK, markersize=5)
            for _, kl, reward in points:
                x, y = root(kl.mean), reward.mean
                if kl.is_finite:
                    axes.plot([root(kl.low), root(kl.high)], [y, y], color=BAND, linewidth=1.5)
                    axes.plot([x, x], [reward.low, reward.high], color=BAND, linewidth=1.5)
            places = [(root(kl.mean), reward.mean) for _, kl, reward in points]
            for label, place in joint_labels([f"{beta:g}" for beta, _, _ in points], places, across, along):
                axes.annotate(label, place, textcoords="offset points", xytext=(4, -9), fontsize=7)
            axes.plot(
                [root(kl.mean) for _, kl, _ in points], [r.mean for _, _, r in points], "o-", color=MARK, lw=1.2, ms=3
            )
            axes.set(xlabel="root of KL", ylabel="reward", title=name, xlim=across, ylim=along)

        panels.append((name, draw(SMALL, paint)))
    return panels


def joint_labels(
    labels: Sequence[str],
    places: Sequence[tuple[float, float]],
    across: tuple[float, float],
    along: tuple[float, float],
) -> list[tuple[str, tuple[float, float]]]:
    """Return one label for points that lie so close together that theirs would be printed over one another.

    >>> joint_labels(["0.1", "0.2", "1"], [(1, 1), (1.1, 1), (5, 5)], (0, 10), (0, 10))
    [('0.1, 0.2', (1, 1)), ('1', (5, 5))]
    """
    groups: list[tuple[list[str], tuple[float, float]]] = []
    for label, (x, y) in zip(labels, places, strict=True):
        near = [
            group
            for group, (u, v) in groups
            if abs(x - u) < 0.12 * (across[1] - across[0]) and abs(y - v) < 0.08 * (along[1] - along[0])
        ]
        if near:
            near[0].append(label)
        else:
            groups.append(([label], (x, y)))
    return [(", ".join(group), place) for group, place in groups]


def against_kl(summary: Summary, cell: Cell, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return for each optimizer some columns of its curve over the root of the KL: means over seeds at each update.

    The first column is in colour with its 95% band, the second dashed, each of the other optimizers' first in grey.
    """
    found = {}
    for name in summary.optimizers:
        records = summary.done(name, cell)
        kls = [root(kl.mean) for _, kl in curve_of(records, "kl")]
        if kls:
            found[name] = kls, {column: [y for _, y in curve_of(records, column)] for column in columns}
    panels = []
    for name, (kls, drawn) in found.items():

        def paint(
            axes: Any, name: str = name, kls: list[float] = kls, drawn: dict[str, list[Interval]] = drawn
        ) -> None:
            first, *others = columns
            for other_kls, other in found.values():
                axes.plot(other_kls, [y.mean for y in other[first]], color=GREY, linewidth=0.7)
            if all(y.is_finite for y in drawn[first]):
                low, high = [y.low for y in drawn[first]], [y.high for y in drawn[first]]
                axes.fill_between(kls, low, high, color=BAND, alpha=0.6, lw=0)
            axes.plot(kls, [y.mean for y in drawn[first]], color=MARK, linewidth=1.6, label=first)
            for column in others:
                axes.plot(kls, [y.mean for y in drawn[column]], "--", color=INK, linewidth=1.1, label=column)
            axes.legend(fontsize=7, frameon=False)
            axes.set(xlabel="root of KL", title=name)

        panels.append((name, draw(SMALL, paint)))
    return panels


def root(kl: float) -> float:
    """Return the root of a KL, 0 of one that sampling made negative."""
    return math.sqrt(max(kl, 0.0))


def limits(values: Sequence[float], start: float) -> tuple[float, float]:
    """Return limits that hold all values but what lies farther below the start than the best lies above it."""
    finite = [value for value in values if math.isfinite(value)] + [start]
    high = max(finite)
    low = max(min(finite), start - max(high - start, 0.05))
    room = 0.08 * max(high - low, 0.05 * max(abs(high), 0.2))
    return low - room, high + room
