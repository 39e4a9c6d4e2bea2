"""Commands that run a stage from a recipe: `lmrl NAME [recipe.toml] [section.key=value ...] [--resume FOLDER]`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from lmrl.errors import ResumeError, SettingsError
from lmrl.plugins.specs import CommandSpec

logger = logging.getLogger(__name__)
FREE_ON_RESUME = ("run.device", "checkpoint", "trackers", "tracker")
"""Settings that any resumed run may change; another would make it another run."""
OVERRIDES = "settings that replace the recipe's; text needs no quotes, but \\n is a line end only inside double ones"

STAGE_CONFIGS: dict[str, str] = {}
"""The configuration of every command made here, "module:Class" by its name; `lmrl config --stage` reads it."""


def recipe_command(
    name: str,
    *,
    config: str,
    stage: str,
    report: str,
    summary: str,
    example: str,
    resumable: bool = True,
    free_on_resume: Sequence[str] = (),
) -> CommandSpec:
    """Return the command of a stage.

    ``config``, ``stage`` and ``report`` are named as "module:attribute" and imported when the command runs: the
    configuration's dataclass, the function ``stage(config, plugins=, resume=, progress=)`` and ``report(result)``,
    which prints, on the main process alone. The exit code is 130 if the result says that it was ``interrupted``.
    """

    STAGE_CONFIGS[name] = config

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("recipe", nargs="?", help="TOML file; left out, every setting has its default")
        parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES)
        if resumable:
            parser.add_argument("--resume", metavar="FOLDER", help="continue the run in this folder where it stopped")
        parser.add_argument("--quiet", action="store_true", help="no progress bar")

    def run(arguments: argparse.Namespace) -> int:
        with _working_folder(arguments):
            return work(arguments)

    def work(arguments: argparse.Namespace) -> int:
        from lmrl.training.run import is_main_process

        cls = imported(config)
        read = read_config(arguments, cls, (*FREE_ON_RESUME, *free_on_resume))
        result = imported(stage)(
            read,
            plugins=arguments.plugin_manager,
            resume=bool(getattr(arguments, "resume", None)),
            progress=not arguments.quiet,
        )
        if is_main_process():
            imported(report)(result)
        return 130 if getattr(result, "interrupted", False) else 0

    return CommandSpec(name=name, add_arguments=add_arguments, run=run, summary=summary, example=example)


@contextmanager
def _working_folder(arguments: argparse.Namespace) -> Iterator[None]:
    """Work in the folder in which a run to resume was started; anything else works in the current one."""
    from lmrl.training.run import CONFIG_FILE

    folder = getattr(arguments, "resume", None)
    if not folder or not (Path(folder) / CONFIG_FILE).exists():
        yield
        return
    from lmrl.training.origin import in_starting_folder

    given = [arguments.recipe, *arguments.overrides]
    with in_starting_folder(Path(folder), [item for item in given if item and "=" in item]) as valid:
        arguments.resume = str(valid)
        yield


def read_config(arguments: argparse.Namespace, cls: type, free_on_resume: Sequence[str] = FREE_ON_RESUME) -> Any:
    """Return the configuration of a recipe and overrides, or that of a run to resume.

    Raises ``SettingsError`` for what is wrong in the recipe, ``ResumeError`` for a folder without a run or an override
    that a resumed run cannot take.
    """
    from lmrl.config import apply_overrides, build, override_names, read_toml, refuse_unread, select_by_path
    from lmrl.training.run import CONFIG_FILE

    recipe, overrides = arguments.recipe, list(arguments.overrides)
    folder = getattr(arguments, "resume", None)
    if recipe and "=" in recipe and not Path(recipe).exists():  # `lmrl rl train.updates=5`: no recipe at all
        recipe, overrides = None, [recipe, *overrides]
    if not folder:
        mapping = apply_overrides(read_toml(recipe) if recipe else {}, overrides)
        for note in select_by_path(cls, mapping, override_names(overrides)):
            logger.info(note)
        read: Any = build(cls, mapping)
        refuse_unread(read, arguments.plugin_manager, override_names(overrides))
        return read
    if recipe:
        raise SettingsError(f"--resume takes its settings from {folder}; leave out the recipe {recipe}")
    file = Path(folder) / CONFIG_FILE
    if not file.exists():
        raise ResumeError(f"{folder} holds no {CONFIG_FILE}; expected the folder of a run")
    _refuse_other_stage(arguments, folder)
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == free or key.startswith(free + ".") for free in free_on_resume):
            raise ResumeError(
                f"{key} cannot change in a resumed run; only {', '.join(free_on_resume)} can. Start a new run from "
                "the checkpoint with model=..."
            )
    config: Any = build(cls, apply_overrides(read_toml(file), overrides))
    refuse_unread(config, arguments.plugin_manager, override_names(overrides))
    return replace(config, run=replace(config.run, folder=str(folder)))


def _refuse_other_stage(arguments: argparse.Namespace, folder: str) -> None:
    from lmrl.training.run import stage_of

    wanted, found = getattr(arguments, "command_name", ""), stage_of(Path(folder))
    if wanted and found and wanted != found:
        raise ResumeError(f"{folder} is a run of `lmrl {found}`; continue it with `lmrl {found} --resume {folder}`")


def imported(name: str) -> Any:
    """Return what "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
