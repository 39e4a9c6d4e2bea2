"""`lmrl bench`: benchmark suites over optimizers, tasks, coefficients and seeds."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmrl.cli.recipes import OVERRIDES
from lmrl.specs import CommandSpec


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


def _declare_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", help="a name that `lmrl bench list` shows, or the path of a suite file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES.replace("recipe", "suite"))
    parser.add_argument("--optimizers", default="", help="names with commas between, or all; default: the suite's")
    parser.add_argument("--tasks", default="", help="names with commas between; default: all of the suite's")
    parser.add_argument("--seeds", type=int, help="how many; default: the suite's")
    parser.add_argument("--beta", default="", help="coefficients of the KL with commas between; default: the suite's")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each; default: %(default)s")
    parser.add_argument(
        "--output", type=Path, help="what it holds is not run again; default: results/SUITE.jsonl, or results/smoke/"
    )
    parser.add_argument("--smoke", action="store_true", help="toy sizes, to see whether everything works")
    parser.add_argument("--retry", action="store_true", help="run anew what failed")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _run(arguments: argparse.Namespace) -> int:
    from lmrl.bench.kinds import GROUP
    from lmrl.bench.running import run_suite
    from lmrl.bench.suite import load_suite

    manager = arguments.plugin_manager
    suite = load_suite(arguments.suite, manager)
    names = suite.members if suite.kind == GROUP else [arguments.suite]
    smoke = arguments.smoke or suite.kind == GROUP
    changes: dict[str, Any] = {}
    if arguments.optimizers:
        changes["optimizers"] = [] if arguments.optimizers == "all" else _names(arguments.optimizers)
    if arguments.seeds is not None:
        changes["seeds"] = arguments.seeds
    if arguments.beta:
        changes["betas"] = _numbers("--beta", arguments.beta)
    broken = 0
    suites = [load_suite(name, manager, smoke=smoke, overrides=arguments.overrides, changes=changes) for name in names]
    for name, suite in zip([Path(name).name for name in names], suites, strict=True):  # no path of this machine
        output = _output(arguments.output, suite.name, smoke, len(suites) > 1)
        chosen = _only(suite, _names(arguments.tasks))
        records = run_suite(
            chosen,
            output,
            plugins=manager,
            jobs=arguments.jobs,
            retry=arguments.retry,
            progress=not arguments.quiet,
            asked=" ".join([name, *(["--smoke"] if smoke else []), *_quoted(arguments.overrides)]),
        )
        _print_records(records, output)
        broken += sum(record.status == "failed" for record in records)
    return 1 if broken else 0


def _quoted(overrides: Sequence[str]) -> list[str]:
    """Return overrides as a shell takes them, without the folders of this machine."""
    from lmrl.bench.circumstances import pathless

    parts = [override.partition("=") for override in overrides]
    return [shlex.quote(f"{key}={pathless(value)}") for key, _, value in parts]


def _output(given: Path | None, suite: str, smoke: bool, several: bool) -> Path:
    from lmrl.errors import SettingsError

    if given is None:
        return Path("results", *(["smoke"] if smoke else []), f"{suite}.jsonl")
    if several:
        if given.suffix == ".jsonl":
            raise SettingsError(f"--output is {given}, one file for several suites; expected a folder")
        return given / f"{suite}.jsonl"
    return given if given.suffix == ".jsonl" else given / f"{suite}.jsonl"


def _only(suite: Any, tasks: Sequence[str]) -> Any:
    """Return the suite with these tasks alone."""
    from dataclasses import replace

    from lmrl.errors import SettingsError, unknown

    for task in tasks:
        if task not in suite.tasks:
            raise SettingsError(f"the suite {suite.name}: " + unknown("task", task, suite.tasks))
    return replace(suite, tasks={task: suite.tasks[task] for task in tasks}) if tasks else suite


def _print_records(records: Sequence[Any], output: Path) -> None:
    from lmrl.bench.summary import summarise
    from lmrl.cli.tables import make_console, make_table

    console = make_console()
    summary = summarise(records)
    table = make_table(["optimizer", f"{summary.measure} (interquartile mean)", "runs", "failed", "seconds per run"])
    for row in summary.rows:
        table.add_row(row.optimizer, str(row.score), str(row.done), str(row.failed), f"{row.seconds:.1f}")
    console.print(table)
    for record in records:
        if record.status == "failed":
            console.print(f"failed: {record.title}: {record.error}", soft_wrap=True, markup=False)
    console.print(
        f"Results in {output}. A page of them: lmrl bench report {output}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


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
    page, text = write_report(results, arguments.output, against, title="Benchmarks")
    make_console().print(f"Report in {page}, as Markdown in {text}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _declare_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="results as they were: a file or a folder")
    parser.add_argument("new", type=Path, help="results as they are")
    parser.add_argument("--margin", type=float, help="differences of scores up to this are none; default: the suite's")
    parser.add_argument("--all", action="store_true", help="show what is equal, too")


def _compare(arguments: argparse.Namespace) -> int:
    from lmrl.bench.compare import compare, missing
    from lmrl.bench.records import read_results
    from lmrl.cli.tables import make_console, make_table
    from lmrl.errors import SettingsError

    if arguments.margin is not None and not arguments.margin > 0:
        raise SettingsError(f"--margin is {arguments.margin:g}; expected a number above 0")
    old, new = read_results([arguments.old]), read_results([arguments.new])
    comparisons = compare(old, new, arguments.margin)
    console = make_console()
    table = make_table(["verdict", "suite, task, optimizer", "old", "new", "difference", "margin"])
    shown = [one for one in comparisons if arguments.all or one.verdict != "equal"]
    for one in shown:
        title = one.title + (f": {one.note}" if one.note else "")
        table.add_row(one.verdict, title, f"{one.old:.3f}", f"{one.new:.3f}", str(one.difference), f"{one.margin:g}")
    if shown:
        console.print(table)
    counts = {verdict: sum(one.verdict == verdict for one in comparisons) for verdict in VERDICTS}
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), highlight=False)
    for suite in new:
        gone = missing(old.get(suite, []), new[suite])
        if gone:
            console.print(f"{suite}: {len(gone)} runs of the old result are missing in the new one, such as {gone[0]}")
    return 1 if any(one.is_worse for one in comparisons) else 0


VERDICTS = ("failed", "worse", "undecided", "better", "equal")


def _declare_exact(parser: argparse.ArgumentParser) -> None:
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


def _exact(arguments: argparse.Namespace) -> int:
    """Run the exact suite and print its table; 1 if a run failed."""
    from lmrl.bench.exact import ExactSuite, failed, run_suite
    from lmrl.bench.exact_report import markdown, plot, summarise
    from lmrl.cli.tables import make_console, make_table

    suite = ExactSuite(
        optimizers=[] if arguments.optimizers == "all" else _names(arguments.optimizers),
        betas=_numbers("--beta", arguments.beta),
        problems=_names(arguments.problems),
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


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str) -> list[float]:
    from lmrl.errors import SettingsError

    try:
        return [float(part) for part in _names(text)]
    except ValueError as error:
        raise SettingsError(f"{option} is {text!r}; expected numbers with commas between, such as 0.1,1") from error


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
        _declare_run,
        _run,
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
        "run that ended well before fails now.",
        "lmrl bench compare benchmarks/results/exact.jsonl results/exact.jsonl",
        _declare_compare,
        _compare,
    ),
    "exact": (
        "the suite exact with its own table and figure",
        "Train optimizers on problems whose every answer is enumerated; report the share of the gap from the "
        "reference's objective to the optimum's that is closed, and the total variation distance to the optimum.",
        "lmrl bench exact --optimizers ppo,grpo,rloo --beta 0.1,1 --seeds 5 --jobs 2",
        _declare_exact,
        _exact,
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
