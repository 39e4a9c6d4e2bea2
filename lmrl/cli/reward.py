"""`lmrl reward`: train a reward model on preferences from a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lmrl.cli.recipes import recipe_command
from lmrl.cli.tables import make_console, make_table

if TYPE_CHECKING:
    from lmrl.stages.reward import RewardTrainingResult
    from lmrl.stages.reward.measures import RewardReport


def print_result(result: RewardTrainingResult, console: Console | None = None) -> None:
    """Print what was read, the held-out table, and where things are."""
    console = console or make_console()
    for note in result.notes:
        console.print(note, soft_wrap=True)
    if result.interrupted:
        advice = f"continue with: lmrl reward --resume {result.folder}"
        console.print(f"Stopped after {result.steps} steps; {advice}", soft_wrap=True)
    if result.report is not None:
        console.print(report_table(result.report))
    console.print(f"\nRun folder    {result.folder}", soft_wrap=True)
    if not result.interrupted:
        console.print(f"Use it        lmrl rl reward.name=learned reward.learned.path={result.folder}", soft_wrap=True)


def report_table(report: RewardReport) -> Table:
    """Return the held-out numbers, each share beside what it has to beat."""
    table = make_table(["", "reward model", "the longer one", "chance"])
    held_out = f"{report.pairs} held-out pairs of {report.rankings} rankings, {report.prompts} prompts"
    table.title = f"{held_out} [95% interval over prompts]"
    table.title_justify = "left"
    table.add_row("accuracy on pairs", str(report.accuracy), str(report.longer_wins), f"{report.constant:.3f}")
    table.add_row("  where the better one is longer", str(report.accuracy_where_longer_is_better), "1.000", "")
    table.add_row("  where the better one is shorter", str(report.accuracy_where_shorter_is_better), "0.000", "")
    for number, member in enumerate(report.members, start=1):
        table.add_row(f"  member {number}", str(member))
    if report.n_way:
        table.add_row(f"best of {report.n_way} N-way rankings", str(report.top_1), "", f"{report.top_1_chance:.3f}")
        table.add_row("  Kendall's tau", str(report.kendall_tau), "", "0.000")
    table.add_row("longer answer scored higher", str(report.longer_preferred), "1.000", "0.500")
    table.add_row("Spearman of score and length", f"{report.score_length_spearman:+.3f}", "1.000", "0.000")
    table.add_row("log loss (nats per pair)", f"{report.log_loss:.3f}", "", "0.693")
    table.add_row("calibration error", f"{report.calibration_error:.3f}")
    for place, part in enumerate(report.by_margin):
        label = "accuracy by margin" if not place else ""
        table.add_row(label, f"{part.accuracy:.3f} at {part.low:.2f} to {part.high:.2f} ({part.pairs} pairs)")
    return table


SPEC = recipe_command(
    "reward",
    config="lmrl.stages.reward.config:RewardConfig",
    stage="lmrl.stages.reward.stage:reward",
    report="lmrl.cli.reward:print_result",
    summary="train a reward model, or an ensemble, on preferences",
    example="lmrl reward examples/reward.toml data.path=preferences.jsonl ensemble.members=3",
    free_on_resume=("train.steps",),
)
