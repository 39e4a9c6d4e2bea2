"""`lmrl prefer`: sample responses and have them ranked, from a recipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lmrl.cli.recipes import recipe_command
from lmrl.cli.tables import make_console, make_table

if TYPE_CHECKING:
    from lmrl.stages.prefer import PreferResult
    from lmrl.stages.prefer.report import PreferReport
    from lmrl.statistics.intervals import Interval

SPEC = recipe_command(
    "prefer",
    config="lmrl.stages.prefer.config:PreferConfig",
    stage="lmrl.stages.prefer.stage:prefer",
    report="lmrl.cli.prefer:print_result",
    summary="make preference data: sample responses and have a reward, a judge or a person rank them",
    example="lmrl prefer examples/prefer.toml annotators.me.kind=person samples.prompts=20",
    free_on_resume=("annotators", "gold", "output"),
)


def annotator_table(report: PreferReport) -> Table:
    """Return what each annotator answered, with its habits."""
    table = make_table(
        ["annotator", "ranked", "unanswered", "left", "all tied", "pairs", "tied", "longer", "first", "alike"]
    )
    for one in report.annotators:
        habits = one.habits
        table.add_row(
            one.name,
            str(habits.judged),
            ", ".join(f"{count} {reason}" for reason, count in one.unanswered.items()) or "-",
            str(one.left),
            str(habits.all_tied),
            str(habits.pairs),
            _share(habits.tied_pairs),
            _share(habits.longer_preferred),
            _share(habits.first_preferred),
            _share(habits.consistency),
        )
    return table


def agreement_table(report: PreferReport) -> Table:
    """Return how well each two annotators agree."""
    table = make_table(["annotators", "prompts", "pairs", "agreement", "with ties", "tau-b", "kappa", "alpha"])
    for one in report.agreements:
        intervals = (one.agreement, one.exact, one.tau, one.kappa)
        table.add_row(
            f"{one.first}, {one.second}",
            str(one.comparisons),
            str(one.strict_pairs),
            *(_share(interval) for interval in intervals),
            "-" if math.isnan(one.alpha) else f"{one.alpha:.3f}",
        )
    return table


def print_result(result: PreferResult, console: Console | None = None) -> None:
    """Print a run's tables, what was left out, and its files."""
    console = console or make_console()
    report = result.report
    if report.prompts:
        console.print(
            f"{report.prompts} prompts, {report.completions} distinct completions ({report.repeated} repeated ones "
            f"left out, {report.cut} cut off at their limit)",
            soft_wrap=True,
        )
    if report.nothing_to_compare:
        console.print(f"{report.nothing_to_compare} prompts have a single completion and cannot be ranked")
    for reason, count in report.skipped.items():
        console.print(f"left out {count}: {reason}", soft_wrap=True)
    if report.annotators:
        console.print(annotator_table(report))
        console.print(
            "longer: pairs in which the longer completion is the better one; first, alike: how often a judge names the "
            "answer\nthat stands first (without a habit 0.5), and answers alike when the two are swapped. "
            "[95% intervals over prompts]"
        )
    for one in report.annotators:
        if one.counts.get("questions"):
            counts = ", ".join(f"{count} {name}" for name, count in one.counts.items())
            console.print(f"{one.name}: {counts}", soft_wrap=True)
    if any(one.comparisons for one in report.agreements):
        console.print(agreement_table(report))
    if report.alpha is not None:
        console.print(f"Krippendorff's alpha over all annotators: {report.alpha:.3f}")
    for name, reason in result.stopped.items():
        console.print(f"{name} stopped: {reason}", soft_wrap=True)
    if result.interrupted or result.stopped or any(one.left for one in report.annotators):
        console.print(f"Continue with  lmrl prefer --resume {result.folder}", soft_wrap=True)
    console.print(f"\nRun folder    {result.folder}", soft_wrap=True)
    for label, path in (("Rankings", result.rankings), ("Pairs", result.pairs)):
        if path is not None:
            console.print(f"{label:<13} {path}", soft_wrap=True)
    if result.rankings is None:
        console.print("Nothing has been ranked, so there is no file of rankings", soft_wrap=True)
    elif result.pairs is None:
        console.print("Every ranking is one tie, so there is nothing to learn from", soft_wrap=True)
    else:
        console.print(f"Next          lmrl reward data.path={result.rankings}", soft_wrap=True)


def _share(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.mean):
        return "-"
    return str(interval) if math.isfinite(interval.low) else f"{interval.mean:.3f}"
