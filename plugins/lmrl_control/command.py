"""`lmrl control`: train an optimizer on a Gymnasium task and print the returns."""

from __future__ import annotations

import argparse
import statistics

from lmrl import CommandSpec
from lmrl.config import apply_overrides, build
from lmrl_control.train import ControlConfig, evaluate_control, train_control

EPISODES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl control`."""
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="settings such as optimizer.name=a2c or train.updates=60"
    )
    parser.add_argument("--episodes", type=int, default=EPISODES, help=f"episodes of evaluation (default: {EPISODES})")


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate the likeliest actions and print both results."""
    config = build(ControlConfig, apply_overrides({}, arguments.settings))
    result = train_control(config, plugins=arguments.plugin_manager)
    trained = evaluate_control(result.module, config.environment, arguments.episodes, config.seed)
    last = result.metrics[-1]["episodes/return"]
    print(
        f"{config.environment}, {config.optimizer.name}, {config.train.updates} updates, {len(result.returns)} episodes"
    )
    print(f"mean return while training, last 100 episodes: {last:.1f}")
    print(f"mean return of the likeliest actions, {arguments.episodes} episodes: {statistics.mean(trained):.1f}")
    return 0


SPEC = CommandSpec(
    name="control",
    add_arguments=add_arguments,
    run=run,
    summary="train an optimizer on a Gymnasium task with vectors as observations and discrete actions",
    example="lmrl control environment=CartPole-v1 optimizer.name=ppo optimizer.ppo.gamma=0.99 train.updates=60",
)
