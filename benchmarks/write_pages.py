"""Write what benchmarks/results holds into the documentation: docs/exact.md, docs/performance.md, optimizers' rows.

    python benchmarks/write_pages.py

A page keeps its tables between two comments, and only what lies between them is replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suite_pages import learning_curves, markdown_table, optimizer_rows, reward_rows, said_of, suite_table

from lmrl.bench.exact import base_of, read_records
from lmrl.bench.exact_report import Row, grid_tables, markdown, plot, summarise
from lmrl.bench.records import read_records as read_runs
from lmrl.bench.summary import Summary
from lmrl.bench.summary import summarise as summary_of
from lmrl.bench.throughput.table import target_of
from lmrl.statistics import Interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
SUITES = ("stories", "verifiable", "synthetic")
"""Those in which every optimizer learns from a reward; each has a row of curves on an optimizer's page."""
OTHERS = ("overoptimization", "reward-models")
CURVES = ROOT / "docs" / "optimizers" / "curves"
PAGES = {"simpo": "dpo", "reinforce_pp_baseline": "reinforce_pp"}
"""The page of an optimizer that has none of its own."""


def replace_between(text: str, name: str, new: str) -> str:
    """Return ``text`` with ``new`` between the two comments of this name; without them it is an error."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected {begin} and {end} once each")
    head, rest = text.split(begin)
    return f"{head}{begin}\n\n{new.strip()}\n\n{end}{rest.split(end)[1]}"


def page_of(optimizer: str) -> str:
    """Return the name of the page that an optimizer's row belongs on."""
    base = base_of(optimizer)
    return PAGES.get(base, base)


def exact_rows(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of an optimizer's page: a row for each name and problem."""
    betas = sorted({record["beta"] for record in records})
    lines = [
        "| optimizer | problem | " + " | ".join(f"beta {beta:g}" for beta in betas) + " | distance |",
        "|---" * (len(betas) + 3) + "|",
    ]
    for row in rows:
        for problem in dict.fromkeys(record["problem"] for record in records):
            shares = [str(row.gap_closed.get((problem, beta), "")) for beta in betas]
            distances = [row.total_variation[(problem, beta)] for beta in betas]
            lines.append(f"| `{row.optimizer}` | {problem} | " + " | ".join([*shares, _range(distances)]) + " |")
    return "\n".join(lines)


def _range(intervals: Sequence[Interval]) -> str:
    means = [interval.mean for interval in intervals]
    return f"{min(means):.3f} to {max(means):.3f}"


def throughput_rows(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of lmrl's ratios: one row for each comparison that has a baseline."""
    lines = [
        "| workload | model | lengths | groups | lmrl, per second | baseline | times the baseline | target "
        "| of the matmul peak |",
        "|---" * 9 + "|",
    ]
    for record in records:
        if record["side"] != "lmrl" or not record.get("ratio"):
            continue
        name = " ".join(part for part in (record["workload"], record["algorithm"], record["variant"]) if part)
        rate, ratio, target = record["rate"], record["ratio"], target_of(record)
        peak = f"{record['utilisation']:.0%}" if record.get("utilisation") else ""
        lines.append(
            f"| {name} | {record['model']} | {record['lengths']} | {record['group_size']} "
            f"| {rate['median']:,.0f} {record['unit']} | `{record['baseline']}` "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) "
            f"| {f'{target:.3g}' if target else ''} | {peak} |"
        )
    return "\n".join(lines)


def decode_rows(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of decode steps beside their floor."""
    kept = [record for record in records if record["side"] == "lmrl" and "decode_floor_seconds" in record]
    cells = []
    for record in kept:
        step, floor = 1000 * record["decode_step_seconds"], 1000 * record["decode_floor_seconds"]
        cells.append((record["model"], record["group_size"], f"{step:.1f}", f"{floor:.1f}", f"{floor / step:.0%}"))
    return markdown_table(("model", "groups", "a step, ms", "its floor, ms", "share"), cells)


def memory_rows(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of peaks: what a side holds beyond its libraries."""
    return markdown_table(
        ("model", "side", "MiB at the peak", "lmrl's share of it"),
        (
            (
                r["model"],
                r["side"],
                f"{r['peak_bytes'] / 2**20:,.0f}",
                f"{r['lmrl_share']:.2f}" if "lmrl_share" in r else "",
            )
            for r in records
            if r["workload"] == "memory" and "peak_bytes" in r
        ),
    )


def overoptimization_rows(summary: Summary) -> str:
    """Return the Markdown table of what is left of the gold reward, by proxy and optimizer."""
    lines = [
        "| proxy | optimizer | gold at its best | gold at the end | lost | KL at the end | right on held-out pairs |",
        "|---" * 7 + "|",
    ]
    for cell in summary.cells:
        for name in summary.optimizers:
            best, end, lost, kl, accuracy = (
                summary.interval(name, cell, metric) for metric in ("best_gold", "gold", "lost", "kl", "proxy_accuracy")
            )
            lines.append(
                f"| `{cell[0]}` | `{name}` | {best} | {end} | {lost.mean:.2f} | {kl.mean:.1f} | {accuracy.mean:.2f} |"
            )
    return "\n".join(lines)


def write_suites() -> None:
    """Write the suites' tables into the benchmarks' page, and each optimizer's rows and curves into its own."""
    page = ROOT / "benchmarks" / "README.md"
    text = page.read_text()
    found = {
        name: summary_of(read_runs(RESULTS / f"{name}.jsonl"))
        for name in (*SUITES, *OTHERS)
        if (RESULTS / f"{name}.jsonl").exists()
    }
    text = replace_between(text, "overoptimization", overoptimization_rows(found["overoptimization"]))
    if "reward-models" in found:
        rows = f"{said_of(found['reward-models'])}\n\n{reward_rows(found['reward-models'])}"
        text = replace_between(text, "reward-models", rows)
        other = ROOT / "docs" / "reward-models.md"
        other.write_text(replace_between(other.read_text(), "reward-models", rows))
    for name in found.keys() - set(OTHERS):
        text = replace_between(text, name, f"{said_of(found[name])}\n\n{suite_table(found[name])}")
    page.write_text(text)
    summaries = [found[name] for name in SUITES if name in found]
    names = dict.fromkeys(name for summary in summaries for name in summary.optimizers)
    CURVES.mkdir(exist_ok=True)
    for path in sorted((ROOT / "docs" / "optimizers").glob("*.md")):
        mine = sorted(name for name in names if page_of(name) == path.stem)
        parts = [optimizer_rows(summaries, mine)] if mine else []
        for name in mine:
            (CURVES / f"{name}.svg").write_text(learning_curves(summaries, name))
            parts.append(f"![Learning curves of {name}](curves/{name}.svg)")
        if mine:
            path.write_text(replace_between(path.read_text(), "suites", "\n\n".join(parts)))


def main() -> None:
    """Write all pages."""
    write_suites()
    speeds = [json.loads(line) for line in (RESULTS / "throughput.jsonl").read_text().splitlines()]
    page = ROOT / "docs" / "performance.md"
    text = page.read_text()
    for name, rows in (("throughput", throughput_rows), ("decode", decode_rows), ("memory", memory_rows)):
        text = replace_between(text, name, rows(speeds))
    page.write_text(text)
    records = read_records(RESULTS / "exact.jsonl")
    rows = summarise(records)
    page = ROOT / "docs" / "exact.md"
    page.write_text(replace_between(page.read_text(), "tables", grid_tables(records)))
    (RESULTS / "exact.md").write_text(markdown(records))
    plot(records, RESULTS / "exact.png")
    for path in sorted((ROOT / "docs" / "optimizers").glob("*.md")):
        mine = [row for row in rows if page_of(row.optimizer) == path.stem]
        text = path.read_text()
        if not mine or not re.search(re.escape(BEGIN.format("exact")), text):
            print(f"{path.name}: no place for results")
            continue
        path.write_text(replace_between(text, "exact", exact_rows(mine, records)))


if __name__ == "__main__":
    main()
