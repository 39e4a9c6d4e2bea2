"""`lmrl bench`: benchmark suites over optimizers, tasks, coefficients and seeds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmrl.cli import bench_run
from lmrl.plugins.specs import CommandSpec


class _Parser(argparse.ArgumentParser):
    """A subcommand's parser: options may stand between positional arguments, as elsewhere in `lmrl`."""

    inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.inside:
            return super().parse_known_args(args, namespace)
        self.inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.inside = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl bench`."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (summary, text, example, declare, action) in ACTIONS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        declare(command)
        command.set_defaults(act=action)


def run(arguments: argparse.Namespace) -> int:
    """Do what the subcommand says."""
    return int(arguments.act(arguments))


def _declare_list(parser: argparse.ArgumentParser) -> None:
    del parser


def _list(arguments: argparse.Namespace) -> int:
    from lmrl.bench.kinds import GROUP
    from lmrl.bench.suite import load_suite
    from lmrl.cli.tables import make_console, make_table
    from lmrl.errors import LmrlError

    table = make_table(["suite", "kind", "tasks", "what it measures"])
    for name, spec in arguments.plugin_manager.benchmarks().items():
        try:
            suite = load_suite(name, arguments.plugin_manager)
            inside = suite.members if suite.kind == GROUP else list(suite.tasks)
            table.add_row(name, suite.kind, ", ".join(inside), spec.summary)
        except LmrlError as error:
            table.add_row(name, "broken", "", str(error))
    make_console().print(table)
    return 0


def _declare_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, help="files of results, or folders with such files")
    parser.add_argument("--against", type=Path, metavar="DIR", help="older results to compare with: a folder or a file")
    parser.add_argument("--output", type=Path, default=Path("results/report"), help="folder; default: %(default)s")


def _report(arguments: argparse.Namespace) -> int:
    from lmrl.bench.records import read_results
    from lmrl.bench.report import write_report
    from lmrl.cli.tables import make_console

    results = read_results(arguments.paths)
    against = read_results([arguments.against]) if arguments.against else None
    page, text = write_report(results, arguments.output, arguments.plugin_manager, against, title="Benchmarks")
    make_console().print(f"Report in {page}, as Markdown in {text}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _declare_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="results as they were: a file or a folder")
    parser.add_argument("new", type=Path, help="results as they are")
    parser.add_argument("--margin", type=float, help="differences of scores up to this are none; default: the suite's")
    parser.add_argument("--all", action="store_true", help="show what is equal, too")
    parser.add_argument("--complete", action="store_true", help="exit code 1, too, if the new result lacks runs")


def _compare(arguments: argparse.Namespace) -> int:
    from lmrl.bench.compare import COLUMNS, VERDICTS, compare, missing
    from lmrl.bench.records import read_results
    from lmrl.cli.tables import make_console, make_table
    from lmrl.errors import SettingsError

    if arguments.margin is not None and not arguments.margin > 0:
        raise SettingsError(f"--margin is {arguments.margin:g}; expected a number above 0")
    old, new = read_results([arguments.old]), read_results([arguments.new])
    comparisons = compare(old, new, arguments.margin)
    console = make_console()
    table = make_table(list(COLUMNS))
    shown = [one for one in comparisons if arguments.all or one.verdict != "equal"]
    for one in shown:
        table.add_row(*one.cells)
    if shown:
        console.print(table)
    counts = {verdict: sum(one.verdict == verdict for one in comparisons) for verdict in VERDICTS}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), highlight=False)
    lacking = {suite: missing(records, new.get(suite, [])) for suite, records in old.items()}
    for suite, runs in lacking.items():
        if runs:
            console.print(f"{suite}: {len(runs)} runs of the old result are missing in the new one, such as {runs[0]}")
    incomplete = arguments.complete and any(lacking.values())
    return 1 if incomplete or any(one.is_worse for one in comparisons) else 0


Declare = Callable[[argparse.ArgumentParser], None]
Act = Callable[[argparse.Namespace], int]
ACTIONS: dict[str, tuple[str, str, str, Declare, Act]] = {
    "list": (
        "show the suites: those that come with lmrl, and those of plugins",
        "Show every suite with its kind and its tasks.",
        "lmrl bench list",
        _declare_list,
        _list,
    ),
    "run": (
        "run a suite, or go on with it",
        "Run every optimizer on every task, at every coefficient, with every seed, and append one JSON line for each "
        "run. What the file holds is not run again.",
        "lmrl bench run stories --optimizers ppo,grpo,rloo --beta 0.02,0.05,0.1 --seeds 5 --jobs 2",
        bench_run.declare,
        bench_run.run,
    ),
    "report": (
        "write a page and Markdown from results",
        "Write one self-contained HTML page and Markdown: aggregates with intervals, profiles, learning curves, "
        "frontiers, times, and what failed or is missing.",
        "lmrl bench report results/ --against benchmarks/results/",
        _declare_report,
        _report,
    ),
    "compare": (
        "say whether anything got worse",
        "Compare two results of the same suites. Exit code 1 if an optimizer got worse by more than the margin, or a "
        "run that ended well before fails now; with --complete, also if a run is gone.",
        "lmrl bench compare benchmarks/results/exact.jsonl results/exact.jsonl",
        _declare_compare,
        _compare,
    ),
}
"""For each subcommand: a short and a longer text, an example, its arguments, and what it does."""

SPEC = CommandSpec(
    name="bench",
    add_arguments=add_arguments,
    run=run,
    summary="compare optimizers on benchmark suites",
    example="lmrl bench run stories --optimizers ppo,grpo,rloo --seeds 5",
)
