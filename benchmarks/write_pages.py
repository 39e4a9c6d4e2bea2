"""Write what benchmarks/results holds into the documentation: the tables of docs/exact.md, and each optimizer's rows.

    python benchmarks/write_pages.py

A page keeps its tables between two comments, and only what lies between them is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmrl.bench.exact import base_of, read_records
from lmrl.bench.exact_report import Row, grid_tables, plot, summarise
from lmrl.statistics import Interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
PAGES = {"simpo": "dpo", "reinforce_pp_baseline": "reinforce_pp"}
"""The page of an optimizer that has none of its own."""
REFERENCES = ("best_of_n", "exact_gradient")


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


def optimizer_rows(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
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


def main() -> None:
    """Write all pages."""
    records = read_records(RESULTS / "exact.jsonl")
    rows = summarise(records)
    page = ROOT / "docs" / "exact.md"
    page.write_text(replace_between(page.read_text(), "tables", grid_tables(records)))
    plot(records, RESULTS / "exact.png")
    for path in sorted((ROOT / "docs" / "optimizers").glob("*.md")):
        mine = [row for row in rows if page_of(row.optimizer) == path.stem]
        text = path.read_text()
        if not mine or not re.search(re.escape(BEGIN.format("exact")), text):
            print(f"{path.name}: no place for results")
            continue
        path.write_text(replace_between(text, "exact", optimizer_rows(mine, records)))


if __name__ == "__main__":
    main()
