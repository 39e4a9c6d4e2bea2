"""`lmrl quickstart`: PPO on the embedded story model, before and after, in about a minute on two cores."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmrl.specs import CommandSpec

RECIPE = {
    "kl": {"beta": 0.1},
    "optimizer": {"name": "ppo"},
    "train": {"updates": 40, "prompts_per_update": 64, "learning_rate": 1e-4},
    "evaluation": {"every": 10, "prompts": 128},
}
"""What the quickstart changes of the defaults; `config.toml` in the run folder holds all of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl quickstart`."""
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")


def run(arguments: argparse.Namespace) -> int:
    """Train, then print the table, the samples, and where to go from here."""
    from lmrl.cli.report import print_result
    from lmrl.cli.tables import make_console
    from lmrl.config import apply_overrides, build
    from lmrl.stages.rl import rl
    from lmrl.stages.rl_config import RLConfig
    from lmrl.stages.run import next_free_folder

    console = make_console()
    console.print(
        "A small story model, made by this project, gives half of its stories a sad end. PPO now maximises "
        "E[reward] - beta KL: the reward is +1 for a happy end and -1 for a sad one, and the KL keeps the policy near "
        "the model it was.\n",
    )
    mapping = apply_overrides(RECIPE, ["run.folder=" + str(next_free_folder(Path("runs"), "quickstart"))])
    result = rl(build(RLConfig, apply_overrides(mapping, arguments.overrides)), plugins=arguments.plugin_manager)
    print_result(result, console)
    console.print(
        f"\nNext          lmrl rl {result.folder}/config.toml run.folder=runs/reinforce optimizer.name=reinforce\n"
        "              lmrl config optimizer.ppo\n"
        "              lmrl plugins",
        soft_wrap=True,
    )
    return 130 if result.interrupted else 0


SPEC = CommandSpec(
    name="quickstart",
    add_arguments=add_arguments,
    run=run,
    summary="train the embedded story model with PPO and show before and after",
    example="lmrl quickstart train.updates=10",
)
