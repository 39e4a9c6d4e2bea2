"""Output at the end of commands: tables with intervals, sample texts, and paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrl.cli.tables import make_console

if TYPE_CHECKING:
    from lmrl.stages.rl import RLResult
    from lmrl.stages.rl.evaluation import Evaluation
    from lmrl.statistics.intervals import Interval


def evaluation_table(before: Evaluation | None, after: Evaluation | None) -> Table:
    """Return a table of reward, KL and length before and after, with 95% intervals over held-out prompts."""
    columns = [(name, evaluation) for name, evaluation in (("before", before), ("after", after)) if evaluation]
    count = columns[-1][1].reward.count if columns else 0
    table = Table(title=f"{count} held-out prompts, mean [95% interval]", title_justify="left")
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    rows = [("reward", "reward"), ("KL to the reference (nats per sequence)", "kl"), ("length (tokens)", "length")]
    for label, field in rows:
        table.add_row(label, *(_shown(getattr(evaluation, field)) for _, evaluation in columns))
    table.add_row("ended by itself", *(f"{evaluation.ended_share:.0%}" for _, evaluation in columns))
    return table


def _shown(interval: Interval) -> str:
    return str(interval) if interval.count else "no scores"


def sample_table(evaluation: Evaluation) -> Table:
    """Return the sample texts below each other, each with its reward on its left."""
    table = Table.grid(padding=(0, 1))
    for text, reward in zip(evaluation.texts, evaluation.shown_rewards, strict=True):
        table.add_row(Text("  [ none]" if reward is None else f"  [{reward:+.2f}]"), Text(text))
    return table


def print_result(result: RLResult, console: Console | None = None) -> None:
    """Print a run's table, its sample texts and its files."""
    from lmrl.reporting.plots import plot_run

    console = console or make_console()
    if result.interrupted:
        advice = f"continue with: lmrl rl --resume {result.folder}"
        console.print(f"Stopped after {result.updates} updates; {advice}", soft_wrap=True)
    if result.after:
        console.print(evaluation_table(result.before, result.after))
        for name, evaluation in (("before", result.before), ("after", result.after)):
            if evaluation:
                console.print(Text.assemble("\n", (f"Samples {name}", "bold"), " (same prompts)"))
                console.print(sample_table(evaluation))
    console.print(f"\nRun folder    {result.folder}", soft_wrap=True)
    console.print(f"Curves        {plot_run(result.folder)}", soft_wrap=True)
    console.print(f"TensorBoard   tensorboard --logdir {result.folder.parent}", soft_wrap=True)
