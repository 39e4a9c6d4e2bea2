"""Write what benchmarks/results holds into the documentation: docs/exact.md, docs/performance.md, optimizers' rows.

    python benchmarks/write_pages.py

A page keeps its tables between two comments, and only what lies between them is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suite_pages import (
    exact_rows,
    exact_tables,
    frontier_table,
    learning_curves,
    markdown_table,
    optimizer_rows,
    overoptimization_curves,
    overoptimization_rows,
    reward_rows,
    said_of,
    suite_table,
)

from lmrl.bench.records import read_records
from lmrl.bench.suite import load_suite
from lmrl.bench.summary import summarise
from lmrl.plugins import PluginManager
from lmrl_suites.throughput.table import target_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
SUITES = ("stories", "verifiable", "synthetic")
"""Those in which every optimizer learns from a reward; each has a row of curves on an optimizer's page."""
OTHERS = ("overoptimization", "reward-models")
FIGURES = ROOT / "benchmarks" / "figures"
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
    base = load_suite("exact", PluginManager()).base_of(optimizer)
    return PAGES.get(base, base)


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


def write_suites() -> None:
    """Write the suites' tables into the benchmarks' page and theirs, each optimizer's rows and curves into its own."""
    found = {name: summarise(read_records(RESULTS / f"{name}.jsonl")) for name in ("exact", *SUITES, *OTHERS)}
    tables = {name: f"{said_of(found[name])}\n\n{suite_table(found[name])}" for name in ("exact", *SUITES)}
    for name in SUITES:
        tables[name] += frontier_table(found[name])
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / "overoptimization.svg").write_text(overoptimization_curves(found["overoptimization"]))
    tables["overoptimization"] = (
        f"{said_of(found['overoptimization'])}\n\n"
        "![Gold reward and proxy over the root of the KL](figures/overoptimization.svg)\n\n"
        + overoptimization_rows(found["overoptimization"])
    )
    models = found["reward-models"]
    tables["reward-models"] = f"{said_of(models)}\n\n{reward_rows(models)}"
    write_into(ROOT / "benchmarks" / "README.md", tables)
    write_into(ROOT / "docs" / "reward-models.md", {"reward-models": tables["reward-models"]})
    write_into(ROOT / "docs" / "exact.md", {"tables": exact_tables(found["exact"])})
    summaries = [found[name] for name in SUITES]
    names = list(dict.fromkeys(name for summary in summaries for name in summary.optimizers))
    CURVES.mkdir(exist_ok=True)
    for name in names:
        (CURVES / f"{name}.svg").write_text(learning_curves([found["exact"], *summaries], name))
    pages = {name: page_of(name) for name in [*names, *found["exact"].optimizers]}
    for path in sorted((ROOT / "docs" / "optimizers").glob("*.md")):
        own = {}
        if mine := sorted(name for name in names if pages[name] == path.stem):
            curves = [f"![Learning curves of {name}](curves/{name}.svg)" for name in mine]
            own["suites"] = "\n\n".join([optimizer_rows(summaries, mine), *curves])
        if rows := [name for name in found["exact"].optimizers if pages[name] == path.stem]:
            own["exact"] = exact_rows(found["exact"], rows)
        if own:
            write_into(path, own)
        else:
            print(f"{path.name}: no results")


def write_into(page: Path, parts: Mapping[str, str]) -> None:
    """Replace what lies between the comments of each name."""
    text = page.read_text()
    for name, new in parts.items():
        text = replace_between(text, name, new)
    page.write_text(text)


def main() -> None:
    """Write all pages."""
    write_suites()
    speeds = [json.loads(line) for line in (RESULTS / "throughput.jsonl").read_text().splitlines()]
    tables = {"throughput": throughput_rows(speeds), "decode": decode_rows(speeds), "memory": memory_rows(speeds)}
    write_into(ROOT / "docs" / "performance.md", tables)


if __name__ == "__main__":
    main()
