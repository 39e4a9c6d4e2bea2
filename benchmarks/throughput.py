"""Throughput of sampling, updating and stepping, side by side with the plain way of doing the same."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from workloads import batch, environment, record, sampling, update
from workloads.setting import SHAPES, Setting, make_setting, write_model
from workloads.timing import Comparison

from lmrl.cli.tables import make_console

WORKLOADS: dict[str, list[tuple[Callable[[Setting, bool, Callable[[], None]], Comparison], bool, int]]] = {
    "sampling": [(sampling.measure, False, sampling.SIDES), (sampling.measure, True, sampling.SIDES)],
    "update": [(update.measure, False, update.SIDES), (update.measure, True, update.SIDES)],
    "environment": [(environment.measure, False, environment.SIDES), (environment.measure, True, environment.SIDES)],
    "batch": [(batch.measure, False, batch.SIDES), (batch.measure, True, batch.SIDES)],
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__ + " All sides run in turns in one process.",
        epilog="Example: python benchmarks/throughput.py --size 0.3M --output benchmarks/results/throughput.jsonl",
    )
    sizes = [size for size in SHAPES if size != "smoke"]
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and one run, to see that everything works")
    parser.add_argument("--runs", type=int, help="timed runs of every side (default: 5, with --smoke 1)")
    parser.add_argument("--size", choices=sizes, default="1M", help="parameters of the random Llama (default: 1M)")
    parser.add_argument("--model", metavar="FOLDER", type=Path, help="measure this checkpoint instead")
    parser.add_argument(
        "--only", choices=list(WORKLOADS), action="append", help="leave out the others; may be repeated"
    )
    parser.add_argument("--threads", type=int, help="threads of torch; 1 is steadier where cores are shared")
    parser.add_argument("--output", metavar="FILE.jsonl", type=Path, help="add the records to this file")
    options = parser.parse_args(arguments)
    options.runs = options.runs if options.runs is not None else (1 if options.smoke else 5)
    for name in ("runs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; expected at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, record and show."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    jobs = [job for name in options.only or WORKLOADS for job in WORKLOADS[name]]
    size = "smoke" if options.smoke else options.size
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or write_model(Path(folder) / "model", size)
        setting = make_setting(path, options.model.name if options.model else size, options.runs, options.smoke)
        around = record.circumstances(setting)
        total = sum(sides for _, _, sides in jobs) * (options.runs + 1)
        with tqdm(total=total, desc=f"throughput, {setting.name}", unit="run") as bar:
            for measure, variant, _ in jobs:
                comparisons.append(measure(setting, variant, bar.update))
                if options.output:
                    record.append(options.output, comparisons[-1], around)
    console = make_console()
    console.print(record.table(comparisons))
    console.print(
        f"{setting.parameters:,} parameters, {setting.rows} rows of at most {setting.new_tokens} tokens, "
        f"{around['threads']} threads; medians of {options.runs} runs."
    )


if __name__ == "__main__":
    main()
