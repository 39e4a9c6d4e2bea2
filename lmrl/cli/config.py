"""`lmrl config`: every setting with its type, default and help, read from the dataclasses themselves."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w

from lmrl.cli.recipes import STAGE_CONFIGS, imported
from lmrl.cli.tables import make_console, make_table
from lmrl.config import FieldHelp, PluginChoice, describe
from lmrl.config.choices import KIND, NoSettings
from lmrl.config.help import default_of
from lmrl.config.types import field_types, is_section, unknown_setting
from lmrl.config.writing import plain
from lmrl.errors import SettingsError, unknown
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import CommandSpec


@dataclass(frozen=True)
class Page:
    """View of one path: a title, its settings, the names that can be picked (with summaries), a TOML table."""

    title: str
    settings: list[FieldHelp]
    names: Mapping[str, str]
    toml: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl config`."""
    parser.add_argument("path", nargs="?", default="", help="a section or setting, such as train or reward.lexicon")
    parser.add_argument("--stage", default="rl", help="the command whose recipe it is, such as sft; default: rl")


def run(arguments: argparse.Namespace) -> int:
    """Print the help on one section, or the list of sections."""
    manager: PluginManager = arguments.plugin_manager
    manager.commands()  # registers every stage's configuration
    if arguments.stage not in STAGE_CONFIGS:
        raise SettingsError(unknown("stage", arguments.stage, STAGE_CONFIGS))
    page = find_page(imported(STAGE_CONFIGS[arguments.stage]), arguments.path, manager)
    if arguments.stage != "rl":
        page = dataclasses.replace(
            page, title=page.title.replace("lmrl config", f"lmrl config --stage {arguments.stage}")
        )
    console = make_console()
    console.print(page.title, soft_wrap=True)
    if page.settings:
        table = make_table(["setting", "type", "default", "help"])
        for setting in page.settings:
            table.add_row(setting.name, setting.type, setting.default, setting.help)
        console.print(table)
    if page.names:
        table = make_table(["name", "summary"])
        for name, summary in sorted(page.names.items()):
            table.add_row(name, summary)
        console.print(table)
    if page.toml:
        console.print(tomli_w.dumps(page.toml).rstrip(), soft_wrap=True)
    return 0


def find_page(root: type, path: str, manager: PluginManager) -> Page:
    """Return what a dotted path below a configuration shows; raises ``SettingsError`` with the nearest path."""
    cls, walked = root, ""
    parts = [part for part in path.split(".") if part]
    while parts:
        part, rest = parts[0], parts[1:]
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if part not in fields:
            raise SettingsError(_unknown(walked, part, cls))
        walked = f"{walked}.{part}".lstrip(".")
        kind, annotation = fields[part].metadata.get(KIND), field_types(cls)[part]
        if kind is not None:
            return _choice_page(walked, fields[part], rest, manager)
        if not is_section(annotation):
            if rest:
                raise SettingsError(f"{walked} is a single setting; it has no {'.'.join(rest)!r}")
            return _setting_page(cls, walked)
        cls, parts = annotation, rest
    return _section_page(cls, walked) if walked else _root_page(cls)


def _root_page(cls: type) -> Page:
    kinds = field_types(cls)
    settings = []
    for field, text in zip(dataclasses.fields(cls), describe(cls), strict=True):
        kind = field.metadata.get(KIND)
        if kind is not None:
            picks = f"Picks the {kind}; its own settings" if text.default else f"The settings of each {kind}"
            help_text = text.help or f"{picks} stand in [{field.name}.<name>]."
            text = dataclasses.replace(text, type=f"section ({kind})", help=help_text)
        elif is_section(kinds[field.name]):
            text = dataclasses.replace(text, type="section", default="", help=text.help or _summary(kinds[field.name]))
        settings.append(text)
    section = next(name for name, kind in kinds.items() if is_section(kind))
    title = f"{_summary(cls)} Ask for a section, such as: lmrl config {section}"
    return Page(title, settings, {}, {})


def _section_page(cls: type, path: str) -> Page:
    return Page(f"[{path}]  {_summary(cls)}", describe(cls), {}, _nested(path, _defaults(cls)))


def _setting_page(cls: type, path: str) -> Page:
    section, _, name = path.rpartition(".")
    defaults = {key: value for key, value in _defaults(cls).items() if key == name}
    return Page(path, [text for text in describe(cls) if text.name == name], {}, _nested(section, defaults))


def _choice_page(path: str, field: dataclasses.Field[Any], rest: list[str], manager: PluginManager) -> Page:
    default: PluginChoice = default_of(field)
    if not rest or rest == ["name"]:
        names = {name: record.summary for name, record in manager.records(default.kind).items()}
        if not default.name:
            title = f"[{path}]  Settings of each {default.kind}; one of them: lmrl config {path}.<name>"
            return Page(title, [], names, {})
        title = f"[{path}]  Picks the {default.kind} by name; settings: lmrl config {path}.<name>"
        setting = FieldHelp("name", "str", f'"{default.name}"', f"One of the {default.kind}s below.")
        return Page(title, [setting], names, _nested(path, {"name": default.name}))
    name = rest[0]
    record = manager.get(default.kind, name)
    settings = record.settings or NoSettings
    section = f"{path}.{name}"
    if len(rest) > 1:
        if rest[1] not in {text.name for text in describe(settings)} or len(rest) > 2:
            raise SettingsError(_unknown(section, ".".join(rest[1:]), settings))
        return _setting_page(settings, f"{section}.{rest[1]}")
    toml = {**_nested(path, {"name": name, name: _defaults(settings)})}
    return Page(f"[{section}]  {record.summary or _summary(settings)}", describe(settings), {}, toml)


def _unknown(section: str, name: str, cls: type) -> str:
    # "dataset" is what the section "prompts" picks: people who know the plugins look for that word.
    picked = [field.name for field in dataclasses.fields(cls) if field.metadata.get(KIND) == name]
    advice = f"The section that picks the {name} is {picked[0]!r}." if picked else ""
    return unknown_setting(section, name, [field.name for field in dataclasses.fields(cls)], advice)


def _defaults(cls: type) -> dict[str, Any]:
    """Return the defaults that TOML can hold; required fields and those left out by default are not among them."""
    values = {field.name: default_of(field) for field in dataclasses.fields(cls) if field.init}
    return {
        name: plain(value, name)
        for name, value in values.items()
        if value is not None and value is not dataclasses.MISSING
    }


def _nested(path: str, table: dict[str, Any]) -> dict[str, Any]:
    for part in reversed([part for part in path.split(".") if part]):
        table = {part: table}
    return table


def _summary(cls: type) -> str:
    """Return the first sentence of a class's docstring, unless it is the signature that dataclasses make up."""
    text = (cls.__doc__ or "").strip()
    return "" if text.startswith(f"{cls.__name__}(") else " ".join(text.split("\n\n")[0].split())


SPEC = CommandSpec(
    name="config",
    add_arguments=add_arguments,
    run=run,
    summary="explain the sections and settings of a recipe",
    example="lmrl config --stage reward objective",
)
