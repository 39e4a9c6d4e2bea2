"""`lmrl export`: write a checkpoint as a folder for inference."""

from __future__ import annotations

import argparse

from lmrl.plugins.specs import CommandSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl export`."""
    parser.add_argument("checkpoint", help="a run's or checkpoint's folder, an adapter's folder, or a hub id")
    parser.add_argument("folder", help="a new folder")
    parser.add_argument("--merge", action="store_true", help="add the adapter to the weights of its base model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="precision of the weights; auto: float32 with --merge, so that logits stay the same, else as stored",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint contains")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and print how to use it."""
    from lmrl.models.exporting import export
    from lmrl.stages.asking import model_path

    kind = export(
        model_path(arguments.checkpoint),
        arguments.folder,
        merge=arguments.merge,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    held = "the adapter, without its base model" if kind == "adapter" else "a whole model in the transformers layout"
    print(f"{arguments.folder} holds {held}")
    print(f"Next          lmrl chat {arguments.folder}")
    return 0


SPEC = CommandSpec(
    name="export",
    add_arguments=add_arguments,
    run=run,
    summary="write a checkpoint's weights and tokenizer into a folder for inference; merge an adapter",
    example="lmrl export runs/rl-1 models/assistant --merge\n\nnext:\n  lmrl chat models/assistant",
)
