"""`lmrl quickstart`: the whole way of RLHF on the embedded story world, in a few minutes on two cores."""

from __future__ import annotations

import argparse
import time

from lmrl.plugins.specs import CommandSpec

TITLES = {
    "pretrain": "Pretraining a base model on stories, from scratch",
    "sft": "Fine-tuning it on requests and answers",
    "prefer": "Sampling answers and ranking them",
    "reward": "Training a reward model on the rankings",
    "rl": "Maximising the learned reward with PPO, near the fine-tuned model",
    "eval": "Measuring base, SFT and RLHF on held-out requests",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl quickstart`."""
    parser.add_argument("--folder", default="", help="where everything goes; default: the next free runs/quickstart-N")
    parser.add_argument("--seed", type=int, default=0, help="everything random derives from it; default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the work, 0.1 for a look; default: 1")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(arguments: argparse.Namespace) -> int:
    """Run every stage, then print the table, the answers side by side, and where to go from here."""
    from lmrl.cli.compare import print_side_by_side
    from lmrl.cli.eval import evaluation_table
    from lmrl.cli.tables import make_console
    from lmrl.stages.quickstart import quickstart
    from lmrl.stages.quickstart.page import PAGE_FILE
    from lmrl.stages.quickstart.recipes import STAGES, chat_commands

    console = make_console()
    began = time.monotonic()
    console.print(
        "From raw text to a chat model, in a small world whose gold measure is known: a story should end happily and "
        "keep to the hero, object and place that were asked for.",
        soft_wrap=True,
    )

    def announce(number: int, stage: str) -> None:
        console.print(f"\n[{number}/{len(STAGES)}] {TITLES[stage]}  (lmrl {stage})", soft_wrap=True)

    result = quickstart(
        arguments.folder,
        seed=arguments.seed,
        scale=arguments.scale,
        plugins=arguments.plugin_manager,
        announce=announce,
        progress=not arguments.quiet,
    )
    if result.interrupted:
        same = "".join(
            f" --{name} {value}"
            for name, value, usual in (("seed", arguments.seed, 0), ("scale", arguments.scale, 1.0))
            if value != usual
        )
        console.print(f"\nStopped. Continue with: lmrl quickstart --folder {result.folder}{same}", soft_wrap=True)
        return 130
    evaluation = result.results["eval"]
    console.print()
    console.print(evaluation_table(evaluation))
    for note in evaluation.notes:
        console.print(f"Note: {note}", soft_wrap=True)
    print_side_by_side(evaluation.samples, console)
    console.print(f"\nTook          {time.monotonic() - began:.0f} s", soft_wrap=True)
    console.print(f"All of it     {result.folder / PAGE_FILE}   (open it in a browser)", soft_wrap=True)
    for number, command in enumerate(chat_commands(result.folder)):
        console.print(f"{'Next' if number == 0 else '':<14}{command}", soft_wrap=True)
    return 0


SPEC = CommandSpec(
    name="quickstart",
    add_arguments=add_arguments,
    run=run,
    summary="run every stage on the embedded story world, from raw text to a chat model",
    example="lmrl quickstart --scale 0.2",
)
