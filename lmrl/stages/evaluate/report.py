"""Files of an evaluation: results.json, plots, and one page with the table and sample answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lmrl.reporting.pages import Cell, Page
from lmrl.stages.evaluate.comparison_page import add_to_page
from lmrl.stages.evaluate.measures import shown
from lmrl.stages.evaluate.stage import EvaluateResult
from lmrl.statistics.intervals import Interval

RESULTS_FILE = "results.json"
BARS_FILE = "bars.png"
SCATTER_FILE = "reward_kl.png"
PAGE_FILE = "report.html"
BAR_KEYS = ("wins", "length", "ended", "repeated", "bits_per_byte")
"""Measures that have a panel of bars, after the first reward."""


def write_report(result: EvaluateResult) -> None:
    """Write results.json, the plots and the page into the run's folder."""
    folder = result.folder
    text = json.dumps(to_dict(result), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / RESULTS_FILE).write_text(text + "\n", encoding="utf-8")
    plots = [plot_bars(result, folder / BARS_FILE)]
    scatter = plot_reward_kl(result, folder / SCATTER_FILE)
    plots += [scatter] if scatter else []
    page = Page("Evaluation: " + ", ".join(column.name for column in result.columns))
    add_table(page, result)
    for plot in plots:
        page.add_image(plot, "95% intervals over prompts")
    if result.samples.prompts:
        page.add_heading("Answers side by side")
        add_to_page(page, result.samples)
    page.write(folder / PAGE_FILE)


def add_table(page: Page, result: EvaluateResult) -> None:
    """Add the table of measures and its notes to a page."""
    rows: list[list[Cell | str]] = [
        [measure.label.strip(), *(shown_value(values, measure.key, measure.percent) for values in result.values)]
        for measure in result.measures
    ]
    page.add_table(["", *(column.name for column in result.columns)], rows, title(result))
    if result.notes:
        page.add_text("\n\n".join(result.notes))


def title(result: EvaluateResult) -> str:
    """Return the table's title."""
    times = f" x {result.samples_per_prompt} samples" if result.samples_per_prompt > 1 else ""
    return f"{result.prompts} held-out prompts{times}, mean [95% interval over prompts]"


def shown_value(values: dict[str, Interval], key: str, percent: bool) -> str:
    """Return a measure of a column as text, empty where the column has none."""
    return shown(values[key], percent) if key in values else ""


def to_dict(result: EvaluateResult) -> dict[str, Any]:
    """Return everything as plain values for JSON; what is not finite is null."""
    columns = []
    for column, values in zip(result.columns, result.values, strict=True):
        found: dict[str, Any] = {key: _plain(interval) for key, interval in values.items()}
        counts = {"wins": result.wins[column.name].to_dict()} if column.name in result.wins else {}
        columns.append(
            {"name": column.name, "path": column.path, "chatted": column.chatted, "measures": found} | counts
        )
    return {
        "prompts": result.prompts,
        "samples_per_prompt": result.samples_per_prompt,
        "columns": columns,
        "notes": result.notes,
    }


def plot_bars(result: EvaluateResult, path: Path) -> Path:
    """Draw a panel of bars with intervals for the first reward and the main measures, and return the file."""
    from matplotlib.figure import Figure

    first_reward = next((m.key for m in result.measures if m.key.startswith("reward:")), "")
    panels = [m for m in result.measures if m.key == first_reward or m.key in BAR_KEYS]
    names = [column.name for column in result.columns]
    figure = Figure(figsize=(max(3.4 * len(panels), 4), 1.6 + 0.45 * len(names)), layout="constrained")
    for axes, measure in zip(figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False):
        for place, values in enumerate(result.values):
            found = values.get(measure.key)
            if found is None or not math.isfinite(found.mean):
                continue
            error = _error(found)
            axes.barh(place, found.mean, color=_colour(place), height=0.6)
            axes.errorbar(found.mean, place, xerr=error, fmt="none", ecolor="#222222", capsize=3)
        axes.set_yticks(range(len(names)), names if axes is figure.axes[0] else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(measure.label)
        if measure.key == "wins":
            axes.axvline(0.5, color="#888888", linestyle=":")
        _tidy(axes)
    figure.savefig(path, dpi=120)
    return path


def plot_reward_kl(result: EvaluateResult, path: Path) -> Path | None:
    """Draw the first reward against the KL to the reference, and return the file; None if there is no KL."""
    from matplotlib.figure import Figure

    key = next((m.key for m in result.measures if m.key.startswith("reward:")), "")
    points = [
        (place, values["kl"], values[key])
        for place, values in enumerate(result.values)
        if "kl" in values and key in values
    ]
    if not points:
        return None
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for place, kl, reward in points:
        axes.errorbar(
            kl.mean,
            reward.mean,
            xerr=_error(kl),
            yerr=_error(reward),
            fmt="o",
            capsize=3,
            color=_colour(place),
            label=result.columns[place].name,
        )
    axes.set_xlabel("KL to the reference (nats per answer)")
    axes.set_ylabel(next(m.label for m in result.measures if m.key == key))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    _tidy(axes)
    figure.savefig(path, dpi=120)
    return path


def _plain(interval: Interval) -> dict[str, float | int | None]:
    numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()} | {
        "count": interval.count
    }


def _error(interval: Interval) -> list[list[float]] | None:
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return None
    return [[max(interval.mean - interval.low, 0)], [max(interval.high - interval.mean, 0)]]


def _colour(place: int) -> str:
    palette = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
    return palette[place % len(palette)]


def _tidy(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
