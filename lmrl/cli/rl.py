"""`lmrl rl`: train a policy with reinforcement learning from a recipe."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmrl.errors import ResumeError, SettingsError
from lmrl.specs import CommandSpec

FREE_ON_RESUME = ("train.updates", "run.device", "run.folder", "checkpoint", "evaluation.show", "trackers")
"""Settings that a resumed run may change; any other would make it another run."""
OVERRIDES = "settings that replace the recipe's; text needs no quotes, but \\n is a line end only inside double ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl rl`."""
    parser.add_argument("recipe", nargs="?", help="TOML file; left out, every setting has its default")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDES)
    parser.add_argument("--resume", metavar="FOLDER", help="continue the run in this folder from its newest checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    """Run the RL stage and print what changed."""
    config = read_config(arguments)
    from lmrl.cli.report import print_result
    from lmrl.stages.rl import rl

    result = rl(config, plugins=arguments.plugin_manager, resume=bool(arguments.resume), progress=not arguments.quiet)
    print_result(result)
    return 130 if result.interrupted else 0


def read_config(arguments: argparse.Namespace) -> Any:
    """Return the ``RLConfig`` of a recipe and overrides, or of a run to resume."""
    from lmrl.config import apply_overrides, build, read_toml
    from lmrl.stages.rl_config import RLConfig
    from lmrl.stages.run import CONFIG_FILE

    recipe, overrides = arguments.recipe, list(arguments.overrides)
    if recipe and "=" in recipe and not Path(recipe).exists():  # `lmrl rl train.updates=5`: no recipe at all
        recipe, overrides = None, [recipe, *overrides]
    if not arguments.resume:
        mapping = read_toml(recipe) if recipe else {}
        return build(RLConfig, apply_overrides(mapping, overrides))
    if recipe:
        raise SettingsError(f"--resume takes its settings from {arguments.resume}; leave out the recipe {recipe}")
    file = Path(arguments.resume) / CONFIG_FILE
    if not file.exists():
        raise ResumeError(f"{arguments.resume} holds no {CONFIG_FILE}; expected the folder of a run")
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME):
            raise ResumeError(
                f"{key} cannot change in a resumed run; only {', '.join(FREE_ON_RESUME)} can. Start a new run from "
                "the checkpoint with model=..."
            )
    config = build(RLConfig, apply_overrides(read_toml(file), overrides))
    return replace(config, run=replace(config.run, folder=str(arguments.resume)))


SPEC = CommandSpec(
    name="rl",
    add_arguments=add_arguments,
    run=run,
    summary="train a policy with reinforcement learning",
    example="lmrl rl examples/stories.toml optimizer.name=reinforce train.updates=50",
)
