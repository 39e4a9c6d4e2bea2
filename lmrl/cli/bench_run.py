"""`lmrl bench run`: a suite, or all suites of a group."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmrl.cli.recipes import OVERRIDES
from lmrl.errors import SettingsError

logger = logging.getLogger(__name__)


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
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


def run(arguments: argparse.Namespace) -> int:
    """Run what the file does not hold yet and print its table; 1 if a run failed."""
    from lmrl.bench.kinds import GROUP
    from lmrl.bench.overrides import refuse_idle_overrides
    from lmrl.bench.running import run_suite
    from lmrl.bench.suite import load_suite

    manager = arguments.plugin_manager
    asked = load_suite(arguments.suite, manager)
    smoke = arguments.smoke or asked.kind == GROUP
    changes = _changes(arguments)
    if asked.kind == GROUP:
        suites = _members(asked.members, manager, arguments.overrides, changes)
    else:
        suites = {
            arguments.suite: load_suite(
                arguments.suite, manager, smoke=smoke, overrides=arguments.overrides, changes=changes
            )
        }
        for suite in suites.values():
            refuse_idle_overrides(arguments.overrides, asked, suite, changes, manager)
    broken = 0
    for path, suite in suites.items():
        output = _output(arguments.output, suite.name, smoke, asked.kind == GROUP)
        name = Path(path).name  # no path of this machine
        records = run_suite(
            suite,
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


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a suite that options say."""
    changes: dict[str, Any] = {}
    if arguments.optimizers:
        changes["optimizers"] = [] if arguments.optimizers == "all" else _names(arguments.optimizers)
    if arguments.seeds is not None:
        changes["seeds"] = arguments.seeds
    if arguments.beta:
        changes["betas"] = _numbers("--beta", arguments.beta)
    if arguments.tasks:
        changes["only"] = _names(arguments.tasks)
    return changes


def _members(
    members: Sequence[str], manager: Any, overrides: Sequence[str], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the suites of a group at their toy sizes, each with those of the optimizers that its kind can run.

    A suite that can run none of them is left out, and one without a coefficient keeps its own.
    """
    from lmrl.bench.kinds import kind_named
    from lmrl.bench.running import able_rows
    from lmrl.bench.suite import load_suite
    from lmrl.errors import unknown

    found: dict[str, Any] = {}
    known: set[str] = set()
    tasks: set[str] = set()
    for name in members:
        plain = load_suite(name, manager, smoke=True, overrides=overrides)
        kind = kind_named(plain.kind, manager)
        mine = dict(changes)
        if not kind.takes_beta:
            mine.pop("betas", None)
        if changes.get("optimizers"):
            able = able_rows(plain, manager)
            known |= set(able)
            mine["optimizers"] = [one for one in changes["optimizers"] if able.get(one) == ""]
            if not mine["optimizers"]:
                logger.warning("left out: the suite %s, which runs none of %s", name, ", ".join(changes["optimizers"]))
                continue
        if changes.get("only"):
            its_own = load_suite(name, manager).tasks
            tasks |= set(its_own)
            mine["only"] = [task for task in changes["only"] if task in its_own]
            if not mine["only"]:
                continue
        found[name] = load_suite(name, manager, smoke=True, overrides=overrides, changes=mine)
    for name in changes.get("only", []):
        if name not in tasks:
            raise SettingsError(unknown("task", name, sorted(tasks)))
    for name in changes.get("optimizers", []):
        if name not in known:
            raise SettingsError(unknown("optimizer", name, sorted(known), manager.absences()))
    return found


def _quoted(overrides: Sequence[str]) -> list[str]:
    """Return overrides as a shell takes them, without the folders of this machine."""
    from lmrl.bench.circumstances import pathless

    parts = [override.partition("=") for override in overrides]
    return [shlex.quote(f"{key}={ABSOLUTE.sub(_last_part, pathless(value))}") for key, _, value in parts]


ABSOLUTE = re.compile(r"(?<=[\"'])[/~][^\"']*")
"""A quoted path that begins at the root or at home."""


def _last_part(path: re.Match[str]) -> str:
    return Path(path[0]).name


def _output(given: Path | None, suite: str, smoke: bool, several: bool) -> Path:
    if given is None:
        return Path("results", *(["smoke"] if smoke else []), f"{suite}.jsonl")
    if several:
        if given.suffix == ".jsonl":
            raise SettingsError(f"--output is {given}, one file for several suites; expected a folder")
        return given / f"{suite}.jsonl"
    return given if given.suffix == ".jsonl" else given / f"{suite}.jsonl"


def _print_records(records: Sequence[Any], output: Path) -> None:
    from lmrl.bench.summary import summarise
    from lmrl.cli.tables import make_console, make_table

    console = make_console()
    summary = summarise(records)
    scored = f"score ({summary.measure} on the task's scale)" if summary.is_scaled else summary.measure
    table = make_table(["optimizer", f"{scored}, interquartile mean", "runs", "failed", "seconds per run"])
    for row in summary.rows:
        table.add_row(row.title, str(row.score), str(row.done), str(row.failed), f"{row.seconds:.1f}")
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


def _names(text: str) -> list[str]:
    """Return names with commas between.

    >>> _names("ppo, rloo,")
    ['ppo', 'rloo']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str) -> list[float]:
    """Return numbers with commas between; raises ``SettingsError``, which names the option, for anything else."""
    try:
        return [float(part) for part in _names(text)]
    except ValueError as error:
        raise SettingsError(f"{option} is {text!r}; expected numbers with commas between, such as 0.1,1") from error
