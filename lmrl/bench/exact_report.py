"""Tables and a figure of the suite `exact`: the gap to the optimum, the share closed of it, the distance left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.statistics import Interval, mean_interval

TABLES = {
    "gap_closed": "Share of the gap that is closed",
    "gap": "Gap J(pi*) - J(pi)",
    "total_variation": "Total variation distance to pi*",
}
"""The measures of each problem's tables, and what they are called."""


@dataclass(frozen=True)
class Row:
    """One optimizer: its intervals over seeds by (problem, beta), and over all of them."""

    optimizer: str
    gap_closed: dict[tuple[str, float], Interval]
    gap: dict[tuple[str, float], Interval]
    total_variation: dict[tuple[str, float], Interval]
    overall: Interval
    distance: Interval
    failed: int
    seconds: float


def summarise(records: Sequence[dict[str, Any]]) -> list[Row]:
    """Return a row for each optimizer, the best first.

    A seed's mean over problems and betas is one unit of the whole. No interval passes what is possible: a gap of 0, a
    share of it of 1, a distance of 0 or 1.
    """
    rows = []
    for name in dict.fromkeys(record["optimizer"] for record in records):
        mine = [record for record in records if record["optimizer"] == name]
        done = [record for record in mine if record["status"] == "done"]
        cells = dict.fromkeys((record["problem"], record["beta"]) for record in mine)

        def over_seeds(measure: str, done: Sequence[dict[str, Any]] = done) -> Interval:
            seeds = dict.fromkeys(record["seed"] for record in done)
            found = mean_interval([_mean([r[measure] for r in done if r["seed"] == seed]) for seed in seeds])
            low = found.low if measure == "gap_closed" else max(found.low, 0.0)
            high = found.high if measure == "gap" else min(found.high, 1.0)
            return Interval(found.mean, low, high, found.count)

        rows.append(
            Row(
                name,
                {cell: over_seeds("gap_closed", _cell(done, cell)) for cell in cells},
                {cell: over_seeds("gap", _cell(done, cell)) for cell in cells},
                {cell: over_seeds("total_variation", _cell(done, cell)) for cell in cells},
                over_seeds("gap_closed"),
                over_seeds("total_variation"),
                len(mine) - len(done),
                _mean([record["seconds"] for record in done]),
            )
        )
    return sorted(rows, key=lambda row: -row.overall.mean)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown: the whole, then each problem by beta."""
    rows = summarise(records)
    seeds = len({record["seed"] for record in records})
    first = records[0]
    lines = [
        f"{seeds} seeds; {first['updates']} updates of {first['groups']} x {first['group_size']} answers each, "
        f"learning rate {first['learning_rate']:g} falling to 0. Means with 95% intervals (Student's t over seeds).",
        "",
        "| optimizer | gap closed | total variation to the optimum | failed runs | seconds per run |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| `{r.optimizer}` | {r.overall} | {r.distance} | {r.failed} | {r.seconds:.1f} |" for r in rows]
    return "\n".join([*lines, "", grid_tables(records)])


def grid_tables(records: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table by beta for each problem and measure."""
    rows = summarise(records)
    tables = [
        "\n".join([f"{title}, `{problem}`:", "", *_table(rows, measure, problem)])
        for problem in dict.fromkeys(record["problem"] for record in records)
        for measure, title in TABLES.items()
    ]
    return "\n\n".join(tables) + "\n"


def _table(rows: Sequence[Row], measure: str, problem: str) -> list[str]:
    """Return the lines of a table of one measure by beta; an optimizer that did not meet a problem has no row."""
    betas = sorted({beta for row in rows for where, beta in row.gap_closed if where == problem})
    lines = ["| optimizer | " + " | ".join(f"beta {beta:g}" for beta in betas) + " |", "|---" * (len(betas) + 1) + "|"]
    for row in rows:
        found = getattr(row, measure)
        if any((problem, beta) in found for beta in betas):
            cells = [str(found.get((problem, beta), "")) for beta in betas]
            lines.append(f"| `{row.optimizer}` | " + " | ".join(cells) + " |")
    return lines


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the gap closed by each optimizer, with its interval, one panel for each beta.

    An arrow stands for a mean that lies further to the left.
    """
    from matplotlib.figure import Figure

    rows = summarise(records)
    betas = sorted({record["beta"] for record in records})
    figure = Figure(figsize=(3.2 * len(betas) + 1.5, 0.28 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(betas), sharey=True, squeeze=False)[0]
    problems = dict.fromkeys(record["problem"] for record in records)
    for panel, beta in zip(panels, betas, strict=True):
        for shift, (problem, colour) in enumerate(zip(problems, ("#4477aa", "#cc6677", "#228833"), strict=False)):
            for place, row in enumerate(reversed(rows)):
                if (problem, beta) not in row.gap_closed:
                    continue
                interval = row.gap_closed[(problem, beta)]
                height = place + 0.16 * (shift - (len(problems) - 1) / 2)
                low, high = max(interval.low, -0.1), min(interval.high, 1.1)
                panel.plot([low, high], [height, height], color=colour, linewidth=1)
                label = problem if place == len(rows) - 1 else None
                marker = "<" if interval.mean < -0.1 else "o"
                panel.plot([max(interval.mean, -0.1)], [height], marker, color=colour, markersize=3.5, label=label)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.axvline(0.95, color="grey", linewidth=0.8, linestyle=":")
        panel.set(title=f"beta {beta:g}", xlim=(-0.12, 1.12), xlabel="gap closed")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [row.optimizer for row in reversed(rows)])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(problems), fontsize=8)
    figure.savefig(path, dpi=120)


def _cell(records: Sequence[dict[str, Any]], cell: tuple[str, float]) -> list[dict[str, Any]]:
    return [record for record in records if (record["problem"], record["beta"]) == cell]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
