"""`lmrl sft`: supervised fine-tuning from a recipe, and the table that it prints at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrl.cli.recipes import recipe_command
from lmrl.cli.tables import make_console

if TYPE_CHECKING:
    from lmrl.stages.sft import SFTResult

SPEC = recipe_command(
    "sft",
    config="lmrl.stages.sft.config:SFTConfig",
    stage="lmrl.stages.sft.stage:sft",
    report="lmrl.cli.sft:print_result",
    summary="fine-tune a language model on conversations, instructions or completions",
    example="lmrl sft examples/sft.toml data.path=instructions.json adapter.method=lora",
    free_on_resume=("train.steps", "train.epochs", "train.microbatch_tokens", "samples"),
)


def loss_table(result: SFTResult) -> Table:
    """Return the held-out numbers before and after."""
    table = Table(
        title=f"{result.held_out} held-out examples, {result.after.get('tokens', 0):.0f} trained tokens "
        "(95% interval over examples)",
        title_justify="left",
    )
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    columns = (result.before, result.after)
    table.add_row("loss (nats per token)", *map(_loss_text, columns))
    table.add_row("perplexity", *(f"{numbers['perplexity']:.2f}" for numbers in columns))
    table.add_row("likeliest token is right", *(f"{numbers['accuracy']:.1%}" for numbers in columns))
    return table


def print_result(result: SFTResult, console: Console | None = None) -> None:
    """Print what became of the data, the table, sample answers and where the files are."""
    from lmrl.data.notes import is_loss_of_data

    console = console or make_console()
    if result.interrupted:
        advice = f"continue with: lmrl sft --resume {result.folder}"
        console.print(f"Stopped after {result.steps} steps; {advice}", soft_wrap=True)
    for note in result.notes:
        if is_loss_of_data(note):  # the others were told at the start and stand in the run's data.json
            console.print(note, soft_wrap=True)
    console.print(
        f"{result.examples} examples, {result.trained_parameters:,} of {result.parameters:,} parameters trained"
    )
    if result.after:
        console.print(loss_table(result))
    for number, sample in enumerate(result.samples):
        console.print(Text.assemble("\n", ("prompt     ", "bold"), sample.prompt.replace("\n", "\n           ")))
        console.print(Text.assemble(("reference  ", "bold"), sample.reference))
        if number < len(result.samples_before):
            console.print(Text.assemble(("before     ", "bold"), result.samples_before[number].answer))
        console.print(Text.assemble(("after      ", "bold"), sample.answer))
    console.print(f"\nRun folder    {result.folder}", soft_wrap=True)
    console.print(f"Model         {result.checkpoint}", soft_wrap=True)
    console.print(f"TensorBoard   tensorboard --logdir {result.folder.parent}", soft_wrap=True)
    console.print(f"Talk to it    lmrl chat {result.folder}", soft_wrap=True)


def _loss_text(numbers: dict[str, float]) -> str:
    if "loss_low" not in numbers:
        return f"{numbers['loss']:.3f}"
    return f"{numbers['loss']:.3f} [{numbers['loss_low']:.3f}, {numbers['loss_high']:.3f}]"
