"""`lmrl compare`: the same questions answered side by side by several models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmrl.cli.sampling import add_sampling_options, read_sampling
from lmrl.cli.tables import make_console
from lmrl.errors import SettingsError
from lmrl.plugins.specs import CommandSpec

if TYPE_CHECKING:
    from lmrl.data.prompts import PromptSettings
    from lmrl.stages.evaluate import SideBySide
    from lmrl.stages.evaluate.comparison import Answer

NARROWEST = 22
"""Characters that an answer's column needs; with less, answers are stacked below one another."""
PROMPT_SHARE = 0.25
NARROWEST_PROMPT = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl compare`."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a model's or run's folder, a hub id, or stories (the embedded one)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="prompts.file.key=value",
        help="settings of the file of prompts, such as prompts.file.columns.prompt=problem",
    )
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a question; repeatable")
    parser.add_argument(
        "--prompts", metavar="FILE", help="a file of questions: .txt with one a line, .jsonl, .json, .csv, .parquet"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N prompts of the file")
    parser.add_argument("--names", default="", metavar="A,B,...", help="the columns' names, such as base,SFT,RLHF")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt, for models that chat")
    parser.add_argument("--complete", action="store_true", help="complete the text, also with a chat template")
    parser.add_argument("--reward", metavar="NAME", help="show each answer's reward: a name, module:function or folder")
    parser.add_argument(
        "--reward-setting", action="append", default=[], metavar="KEY=VALUE", help="a setting of the reward; repeatable"
    )
    parser.add_argument("--reference", default="", metavar="MODEL", help="show each answer's KL to this model")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as Markdown, too")
    parser.add_argument("--html", metavar="FILE", help="write the table as one self-contained page, too")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON, too")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_sampling_options(parser, temperature=1.0, max_new_tokens=128)


def run(arguments: argparse.Namespace) -> int:
    """Answer, print the table and write the files that were asked for."""
    from lmrl.config import apply_overrides
    from lmrl.stages.evaluate import compare
    from lmrl.stages.evaluate.comparison_page import to_markdown, to_page

    models, overrides = _sorted(arguments)
    if arguments.system and arguments.complete:
        raise SettingsError("--system and --complete are both given; completed text has no system prompt. Drop one.")
    if arguments.reward_setting and not arguments.reward:
        raise SettingsError(f"--reward-setting {arguments.reward_setting[0]} stands without --reward NAME")
    settings = prompt_settings(arguments, overrides)
    table = compare(
        models,
        read_prompts(arguments, settings),
        names=[name.strip() for name in arguments.names.split(",")] if arguments.names else (),
        system=arguments.system,
        sampling=read_sampling(arguments),
        seed=arguments.seed,
        reward=arguments.reward,
        reward_settings=apply_overrides({}, arguments.reward_setting),
        reference=arguments.reference,
        complete=arguments.complete or settings.chat == "off",
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        plugins=arguments.plugin_manager,
        progress=not arguments.quiet,
    )
    console = make_console()
    print_side_by_side(table, console)
    title = " | ".join(column.name for column in table.columns)
    written = []
    if arguments.markdown:
        written.append(_write(arguments.markdown, to_markdown(table, title)))
    if arguments.html:
        written.append(to_page(table, title).write(arguments.html))
    if arguments.json:
        written.append(_write(arguments.json, json.dumps(table.to_dict(), indent=2, ensure_ascii=False) + "\n"))
    for path in written:
        console.print(f"Written       {path}", soft_wrap=True)
    return 0


def _sorted(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the models, and the overrides among them."""
    models: list[str] = []
    overrides: list[str] = []
    for item in [*arguments.models, *arguments.overrides]:
        (overrides if "=" in item and not Path(item).exists() else models).append(item)
    if not models:
        raise SettingsError(f"no model is named; expected a folder or hub id before {overrides[0]}")
    return models, overrides


def prompt_settings(arguments: argparse.Namespace, overrides: list[str]) -> PromptSettings:
    """Return the settings of the file of prompts. Raises ``SettingsError`` for one that nothing reads."""
    from lmrl.config import apply_overrides, build
    from lmrl.data.prompts import PromptSettings

    section = "prompts.file"
    mapping = apply_overrides({}, overrides)
    others = [name.partition("=")[0] for name in overrides if not name.startswith(f"{section}.")]
    if others:
        raise SettingsError(f"{others[0]} is no setting of lmrl compare; expected {section}.NAME=VALUE, or a model")
    given: dict[str, Any] = mapping.get("prompts", {}).get("file", {})
    for option, name in (("--prompts", "path"), ("--limit", "limit")):
        value = getattr(arguments, name if name == "limit" else "prompts")
        if value and name in given:
            raise SettingsError(f"{option} and {section}.{name} are both given; expected one of them")
        given = {**given, name: value} if value else given
    settings = build(PromptSettings, given, section)
    unread = {} if settings.path else dict.fromkeys(given, "path")
    for name, switch in (unread | settings.unread()).items():
        if name in given:
            said = "--limit" if arguments.limit and name == "limit" else f"{section}.{name}"
            wanted = "--prompts FILE" if switch == "path" else f"{section}.{switch}"
            raise SettingsError(
                f"{said} is set, but lmrl compare reads it only with {wanted}. Set that too, or drop it."
            )
    return settings


def read_prompts(arguments: argparse.Namespace, settings: PromptSettings) -> list[Any]:
    """Return the prompts of the command line, then those of the file as rows."""
    from lmrl.data.prompts import load_rows

    prompts: list[Any] = [*arguments.prompt, *(load_rows(settings) if settings.path else [])]
    if not prompts:
        raise SettingsError('there is nothing to ask; give --prompt "..." (repeatable) or --prompts FILE')
    return prompts


def print_side_by_side(table: SideBySide, console: Console) -> None:
    """Print answers in columns, or below one another where the console is too narrow for that."""
    from lmrl.stages.evaluate.comparison_page import settings_lines

    left = console.width - 3 * len(table.columns) - 2
    most = left - NARROWEST * len(table.columns)
    if most >= NARROWEST_PROMPT:
        console.print(_columns(table, min(most, max(NARROWEST_PROMPT, int(console.width * PROMPT_SHARE)))))
    else:
        for block in _blocks(table):
            console.print(block, soft_wrap=False)
    for line in settings_lines(table):
        console.print(Text(line, "dim"), soft_wrap=True)


def _columns(table: SideBySide, prompt_width: int) -> Table:
    from lmrl.stages.evaluate.comparison_page import means_note

    shown = Table(box=box.SIMPLE_HEAD, show_lines=True, pad_edge=False, expand=True)
    shown.add_column("prompt", width=prompt_width, overflow="fold")
    for column in table.columns:
        shown.add_column(Text(column.heading), ratio=1, overflow="fold")
    for prompt, answers in zip(table.prompts, table.answers, strict=True):
        shown.add_row(Text(prompt), *(_answer(answer) for answer in answers))
    if table.reward or table.reference:
        means = [means_note(table, column) for column in range(len(table.columns))]
        shown.add_row(Text("mean", "bold"), *(Text(mean, "bold") for mean in means))
    return shown


def _blocks(table: SideBySide) -> list[RenderableType]:
    from lmrl.stages.evaluate.comparison_page import answer_note, means_note

    blocks: list[RenderableType] = []
    for prompt, answers in zip(table.prompts, table.answers, strict=True):
        blocks.append(Text.assemble("\n", ("prompt  ", "bold"), prompt))
        for column, answer in zip(table.columns, answers, strict=True):
            note = answer_note(answer)
            blocks.append(Text.assemble("\n", (f"[{column.heading}]", "bold"), (f"  {note}" if note else "", "dim")))
            blocks.append(Text(answer.text.strip()))
    if table.reward or table.reference:
        blocks.append(Text("\nmean", "bold"))
        blocks += [Text(f"  {column.name}: {means_note(table, i)}") for i, column in enumerate(table.columns)]
    return [*blocks, Text("")]


def _answer(answer: Answer) -> Group:
    from lmrl.stages.evaluate.comparison_page import answer_note

    note = answer_note(answer)
    return Group(Text(answer.text.strip()), *([Text(note, "dim")] if note else []))


def _write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


SPEC = CommandSpec(
    name="compare",
    add_arguments=add_arguments,
    run=run,
    summary="show the same questions answered side by side by several models",
    example='lmrl compare stories runs/rl-1 --names base,RLHF --prompt "Mia found a red ball." --reward happy_end',
)
