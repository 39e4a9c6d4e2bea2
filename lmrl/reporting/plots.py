"""Curves of a run as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.reporting.metrics import read_metrics

PLOT_FILE = "curves.png"


@dataclass(frozen=True)
class Panel:
    """One plot: a line over the run and points with intervals, each named by its metric (empty: none).

    Points take their intervals from ``<points>_low`` and ``<points>_high`` where they were logged.
    """

    label: str
    line: str = ""
    points: str = ""


RL_PANELS = (
    Panel("reward", "rollout/reward", "evaluation/reward"),
    Panel("KL to the reference (nats per sequence)", "rollout/kl", "evaluation/kl"),
    Panel("length (tokens)", "rollout/length", "evaluation/length"),
)


def plot_run(
    folder: Path,
    panels: Sequence[Panel] = RL_PANELS,
    unit: str = "update",
    line_label: str = "training batch",
    points_label: str = "held-out prompts, 95%",
) -> Path:
    """Draw the panels over the updates or steps from ``metrics.jsonl`` and return the file.

    Lines are training batches; points with bars are evaluations on held-out data with 95% intervals.
    """
    from matplotlib.figure import Figure  # the Figure class alone needs no display and leaves no global state
    from matplotlib.ticker import MaxNLocator

    records = read_metrics(folder)
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        line = [(record[unit], record[panel.line]) for record in records if panel.line in record]
        if line:
            axes.plot(*zip(*line, strict=True), color="#4477aa", linewidth=1.2, label=line_label)
        _draw_points(axes, [record for record in records if panel.points in record], panel.points, unit, points_label)
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(panel.label)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    if figure.axes[0].has_data():
        figure.axes[0].legend(frameon=False)
    path = folder / PLOT_FILE
    figure.savefig(path, dpi=120)
    return path


def _draw_points(axes: Any, records: Sequence[Mapping[str, float]], name: str, unit: str, label: str) -> None:
    if not records:
        return
    means = [record[name] for record in records]
    below = [mean - record.get(f"{name}_low", mean) for mean, record in zip(means, records, strict=True)]
    above = [record.get(f"{name}_high", mean) - mean for mean, record in zip(means, records, strict=True)]
    axes.errorbar(
        [record[unit] for record in records],
        means,
        yerr=[below, above],
        fmt="o",
        markersize=4,
        capsize=3,
        color="#cc6677",
        label=label,
    )
