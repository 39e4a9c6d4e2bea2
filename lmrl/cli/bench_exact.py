"""`lmrl bench exact`: the suite `exact` with its own table and figure."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmrl.cli.lists import names, numbers


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--optimizers", default="all", help="names with commas between; default: all that are installed"
    )
    parser.add_argument("--beta", default="0.1,0.3,1", help="coefficients of the KL; default: %(default)s")
    parser.add_argument("--problems", default="random,counting", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--updates", type=int, default=200, help="updates of every run; default: %(default)s")
    parser.add_argument("--groups", type=int, default=64, help="prompts per update; default: %(default)s")
    parser.add_argument("--group-size", type=int, default=8, help="answers per prompt; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default: %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/exact.jsonl"),
        help="what it holds is not run again; tables and a figure are written beside it; default: %(default)s",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Run the exact suite and print its table; 1 if a run failed."""
    from lmrl.bench.exact import ExactSuite, failed, run_suite
    from lmrl.bench.exact_report import markdown, plot, summarise
    from lmrl.cli.tables import make_console, make_table

    suite = ExactSuite(
        optimizers=[] if arguments.optimizers == "all" else names(arguments.optimizers),
        betas=numbers("--beta", arguments.beta),
        problems=names(arguments.problems),
        seeds=arguments.seeds,
        updates=arguments.updates,
        groups=arguments.groups,
        group_size=arguments.group_size,
    )
    output: Path = arguments.output
    records = run_suite(
        suite, output, plugins=arguments.plugin_manager, jobs=arguments.jobs, progress=not arguments.quiet
    )
    table = make_table(["optimizer", "gap closed", "total variation", "failed", "seconds per run"])
    for row in summarise(records):
        table.add_row(row.optimizer, str(row.overall), str(row.distance), str(row.failed), f"{row.seconds:.1f}")
    console = make_console()
    console.print(table)
    broken = failed(records)
    for record in broken:
        console.print(
            f"failed: {record['optimizer']}, beta {record['beta']:g}, seed {record['seed']}: {record['error']}"
        )
    page, figure = output.with_suffix(".md"), output.with_suffix(".png")
    page.write_text(markdown(records), encoding="utf-8")
    plot(records, figure)
    console.print(f"Results in {output}, tables in {page}, figure in {figure}", soft_wrap=True)
    return 1 if broken else 0
