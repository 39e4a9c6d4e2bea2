"""`lmrl pretrain`: from text to a language model, by a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrl.cli.recipes import recipe_command
from lmrl.cli.tables import make_console, make_table

if TYPE_CHECKING:
    from lmrl.corpus import CorpusReport
    from lmrl.stages.pretrain import PretrainResult


def print_result(result: PretrainResult, console: Console | None = None) -> None:
    """Print what became of the documents, the held-out numbers, samples, and where things are."""
    from lmrl.reporting.plots import PLOT_FILE

    console = console or make_console()
    console.print(corpus_table(result.report))
    for note in result.report.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if result.interrupted:
        advice = f"continue with: lmrl pretrain --resume {result.folder}"
        console.print(f"Stopped after {result.steps} steps; {advice}", soft_wrap=True)
    if result.evaluation:
        console.print(held_out_table(result))
    console.print(
        f"{result.parameters:,} parameters, {result.tokens:,} tokens seen, {result.tokens_per_second:,.0f} per second, "
        f"MFU {result.mfu:.1%} (peak: {result.peak})",
        soft_wrap=True,
    )
    for sample in result.samples:
        console.print(Text.assemble("\n", ("Sample ", "bold"), sample), soft_wrap=True)
    console.print(f"\nRun folder    {result.folder}", soft_wrap=True)
    console.print(f"Model         {result.checkpoint}", soft_wrap=True)
    console.print(f"Corpus        {result.corpus.folder}", soft_wrap=True)
    console.print(f"Curves        {result.folder / PLOT_FILE}", soft_wrap=True)


def corpus_table(report: CorpusReport) -> Table:
    """Return what became of the documents: in, left out by each step with its reason, out."""
    table = make_table(["step", "reason", "documents", "characters", "first example"])
    table.title, table.title_justify = "Documents", "left"
    for name in ("documents", "characters"):
        next(column for column in table.columns if column.header == name).justify = "right"
    table.add_row("in", "", f"{report.documents_in:,}", f"{report.characters_in:,}", "")
    for step, reason, documents, characters, example in report.rows():
        table.add_row(step, reason, f"-{documents:,}", f"-{characters:,}", example)
    for step, changes in report.changed.items():
        for what, count in changes.items():
            lost = f"-{count.characters:,}" if count.characters else ""
            table.add_row(step, f"kept, {what}", f"{count.documents:,}", lost, count.example)
    table.add_row("out", "", f"{report.documents_out:,}", f"{report.characters_out:,}", "")
    return table


def held_out_table(result: PretrainResult) -> Table:
    """Return the held-out numbers before and after."""
    table = make_table(["held-out documents", "before", "after"])
    for column in table.columns[1:]:
        column.justify = "right"
    for label, name in (("nats per token", "loss"), ("bits per byte", "bits_per_byte")):
        if name in result.evaluation:
            before = result.first_evaluation.get(name)
            table.add_row(label, "" if before is None else f"{before:.4f}", f"{result.evaluation[name]:.4f}")
    return table


SPEC = recipe_command(
    "pretrain",
    config="lmrl.stages.pretrain.config:PretrainConfig",
    stage="lmrl.stages.pretrain.stage:pretrain",
    report="lmrl.cli.pretrain:print_result",
    summary="train a language model on text, from scratch or from a checkpoint",
    example="lmrl pretrain examples/pretrain.toml 'corpus.paths=[\"shakespeare.txt\"]' train.steps=500",
    free_on_resume=("train.steps", "train.microbatch_rows", "samples"),
)
