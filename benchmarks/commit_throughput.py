"""Compare the speed and the peak memory of two commits of lmrl, each in its own work tree and environment."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from commit_processes import WARM_UP, Side, find_side, measure_pair
from commit_verdict import JUDGED, LARGEST, PEAKS, SLOWEST, Comparison, Measurement, compare
from tqdm import tqdm

from lmrl.bench.circumstances import commit, machine
from lmrl.cli.tables import make_console, make_table
from lmrl.errors import LmrlError
from lmrl_suites.throughput.shapes import SHAPES, prompt_rows, prompt_text, write_model

PROMPT_TOKENS, NEW_TOKENS = 32, 64
PROMPTS, GROUP_SIZE = 8, 8
STOP_SHARE = 512
"""One in so many ids ends a response, so that 8 of 9 have full length and both sides do nearly the same work."""
COLUMNS = ("size", "measure", "unit", "before", "after", "after / before [95% interval]", "verdict")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit status: 1 if a measure fails, 2 if it cannot be measured, otherwise 0.",
    )
    parser.add_argument(
        "--before",
        required=True,
        metavar="PYTHON_OR_ROOT",
        help="work tree with an environment in .venv, or a Python interpreter",
    )
    parser.add_argument("--after", required=True, metavar="PYTHON_OR_ROOT", help="the same for the commit under test")
    parser.add_argument("--pairs", type=int, default=9, metavar="N", help="pairs of processes per size; default: 9")
    parser.add_argument(
        "--sizes", nargs="+", default=["1M", "10M"], choices=list(SHAPES), help="model sizes; default: 1M 10M"
    )
    parser.add_argument("--updates", type=int, default=4, metavar="N", help="counted updates per process; default: 4")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements and ratios to this file")
    options = parser.parse_args(arguments)
    for name in ("pairs", "updates"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; expected a number of at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure all pairs, show the table, and return the exit status."""
    options = parse(arguments)
    try:
        sides = (find_side("before", options.before), find_side("after", options.after))
        pairs, versions = measure(sides, options)
    except LmrlError as error:
        print(f"commit_throughput.py: {error}", file=sys.stderr)
        return 2
    compared = [comparison for size in options.sizes for comparison in compare(size, pairs[size])]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record(compared, pairs, versions), indent=1) + "\n", encoding="utf-8")
    show(compared, versions)
    return int(any(comparison.verdict == "FAIL" for comparison in compared))


def measure(
    sides: tuple[Side, Side], options: argparse.Namespace
) -> tuple[dict[str, list[tuple[Measurement, Measurement]]], list[dict[str, Any]]]:
    """Return the measurements of every size's pairs, and the version of both sides."""
    pairs: dict[str, list[tuple[Measurement, Measurement]]] = {size: [] for size in options.sizes}
    versions: list[dict[str, Any]] = []
    updates = WARM_UP + options.updates
    total = 2 * options.pairs * len(options.sizes) * updates
    with tempfile.TemporaryDirectory(prefix="lmrl-commits-") as name, tqdm(total=total, unit="update") as bar:
        folder = Path(name)
        models = {size: write_job(folder / size, size, updates) for size in options.sizes}
        for pair in range(options.pairs):
            for size in options.sizes:
                bar.set_description(f"pair {pair + 1} of {options.pairs}, {size}")
                job = {**models[size], "seed": pair}
                runs = folder / f"{size}-{pair}"
                measured, versions = measure_pair(sides, job, runs, bool(pair % 2), bar.update)
                pairs[size].append(measured)
    for version in versions:
        version["commit"] = commit(Path(version.pop("package")))
    return pairs, versions


def write_job(folder: Path, size: str, updates: int) -> dict[str, Any]:
    """Write the random model of a size, and return the job of the processes that train it, without a seed."""
    shape = SHAPES[size]
    write_model(folder, shape, PROMPT_TOKENS + NEW_TOKENS)
    stops = list(range(shape.vocabulary - max(1, shape.vocabulary // STOP_SHARE), shape.vocabulary))
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**settings, "eos_token_id": stops}), encoding="utf-8")
    return {
        "model": str(folder),
        "prompts": [prompt_text(ids) for ids in prompt_rows(shape.vocabulary, PROMPTS * GROUP_SIZE, PROMPT_TOKENS)],
        "prompts_per_update": PROMPTS,
        "group_size": GROUP_SIZE,
        "new_tokens": NEW_TOKENS,
        "updates": updates,
    }


def record(
    compared: list[Comparison],
    pairs: dict[str, list[tuple[Measurement, Measurement]]],
    versions: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return a JSON-able record of the comparison, without host names or paths; a missing bound is null."""
    results = []
    for comparison in compared:
        interval = comparison.interval
        bounds = [interval.low, interval.high] if interval.is_finite else [None, None]
        results.append({**asdict(comparison), "interval": bounds, "ratio": interval.mean})
    return {
        "before": versions[0],
        "after": versions[1],
        "machine": machine(versions[1]["threads"]),
        "limits": {"slowest": SLOWEST, "largest": LARGEST, "judged": JUDGED},
        "results": results,
        "measurements": {
            size: [{"before": asdict(before), "after": asdict(after)} for before, after in measured]
            for size, measured in pairs.items()
        },
    }


def show(compared: list[Comparison], versions: list[dict[str, Any]]) -> None:
    """Print the commits and the table."""
    console = make_console()
    for name, version in zip(("before", "after"), versions, strict=True):
        console.print(f"{name}: {version['commit'] or 'no checkout'}, torch {version['torch']}")
    table = make_table(COLUMNS)
    for row in compared:
        memory = row.measure in PEAKS
        scale = 2**20 if memory else 1
        values = [f"{value / scale:,.0f}" for value in (row.before, row.after)]
        unit = "MiB at the peak" if memory else "tokens/s"
        table.add_row(row.size, row.measure, unit, *values, str(row.interval), row.verdict)
    console.print(table)
    console.print(f"A ratio fails if its interval is wholly below {SLOWEST}; memory, wholly above {LARGEST}.")


if __name__ == "__main__":
    sys.exit(main())
