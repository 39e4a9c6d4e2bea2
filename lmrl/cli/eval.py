"""`lmrl eval`: measure models on held-out prompts, from a recipe or from the models' names alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrl.cli.recipes import OVERRIDES, recipe_command
from lmrl.cli.tables import make_console
from lmrl.errors import SettingsError
from lmrl.plugins.specs import CommandSpec

if TYPE_CHECKING:
    from lmrl.stages.evaluate import EvaluateResult

_RECIPE = recipe_command(
    "eval",
    config="lmrl.stages.evaluate.config:EvaluateConfig",
    stage="lmrl.stages.evaluate.stage:evaluate",
    report="lmrl.cli.eval:print_result",
    summary="measure models on held-out prompts: reward, KL, win rate, perplexity, diversity",
    example="lmrl eval stories runs/rl-1 --names base,RLHF reference=stories prompts.stories.split=test",
    free_on_resume=("bounds", "rewards", "reward_settings", "wins", "show"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl eval`."""
    parser.add_argument(
        "items", nargs="*", metavar="recipe.toml | MODEL", help="a recipe, or models to take in place of its models"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES)
    parser.add_argument("--names", default="", metavar="A,B,...", help="the models' names, such as base,SFT,RLHF")
    parser.add_argument("--resume", metavar="FOLDER", help="continue the run in this folder where it stopped")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Sort recipe, models and overrides, and run the stage."""
    recipes, models, overrides = [], [], []
    for item in [*arguments.items, *arguments.overrides]:
        if "=" in item and not Path(item).exists():
            overrides.append(item)
        elif item.endswith(".toml"):
            recipes.append(item)
        else:
            models.append(item)
    if len(recipes) > 1:
        raise SettingsError(f"{' and '.join(recipes)} are two recipes; expected one")
    if models:
        overrides.append(f"models={json.dumps(models)}")
    if arguments.names:
        overrides.append(f"names={json.dumps([name.strip() for name in arguments.names.split(',')])}")
    arguments.recipe, arguments.overrides = (recipes or [None])[0], overrides
    return _RECIPE.run(arguments)


def evaluation_table(result: EvaluateResult) -> Table:
    """Return the measures, one a row, with a column for each model."""
    from lmrl.stages.evaluate.report import shown_value, title

    table = Table(title=title(result), title_justify="left")
    table.add_column("")
    for column in result.columns:
        table.add_column(Text(column.name), justify="right", overflow="fold")
    for measure in result.measures:
        cells = (shown_value(values, measure.key, measure.percent) for values in result.values)
        table.add_row(Text(measure.label), *cells)
    return table


def print_result(result: EvaluateResult, console: Console | None = None) -> None:
    """Print the table, sample answers, what was noted, and where things are."""
    from lmrl.cli.compare import print_side_by_side
    from lmrl.stages.evaluate.report import PAGE_FILE, RESULTS_FILE

    console = console or make_console()
    console.print(evaluation_table(result))
    for name, rate in result.wins.items():
        unanswered = f", {rate.unanswered} unanswered" if rate.unanswered else ""
        empty = f"; {rate.by_empty} decided by an empty answer" if rate.by_empty else ""
        counts = f"{rate.wins} wins, {rate.ties} ties, {rate.losses} losses{unanswered}{empty}"
        console.print(f"{name} against {baseline_name(result)}: {counts}", soft_wrap=True)
    for note in result.notes:
        console.print(Text(f"Note: {note}", "dim"), soft_wrap=True)
    if result.samples.prompts:
        print_side_by_side(result.samples, console)
    console.print(f"\nRun folder    {result.folder}", soft_wrap=True)
    console.print(f"Results       {result.folder / RESULTS_FILE}", soft_wrap=True)
    console.print(f"Page          {result.folder / PAGE_FILE}", soft_wrap=True)


def baseline_name(result: EvaluateResult) -> str:
    """Return the name of the model that the others were compared with."""
    return next(column.name for column in result.columns if column.name not in result.wins)


SPEC: CommandSpec = dataclasses.replace(_RECIPE, add_arguments=add_arguments, run=run)
