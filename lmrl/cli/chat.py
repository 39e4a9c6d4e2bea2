"""`lmrl chat`: talk to a model in the terminal, or through a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys

from lmrl.cli.sampling import add_sampling_options, read_sampling
from lmrl.errors import DataError, SettingsError
from lmrl.plugins.specs import CommandSpec

BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
HIDDEN = "\x01{}\x02"
"""Marks for line editing around characters of its prompt that take no room."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl chat`."""
    parser.add_argument(
        "model", nargs="?", default="stories", help="a model's or run's folder, or a hub id; left out, the story model"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    parser.add_argument("--complete", action="store_true", help="complete text, also with a chat template")
    parser.add_argument("--load", metavar="FILE", help="go on with the last conversation that /save put into this file")
    add_sampling_options(parser, temperature=0.7, max_new_tokens=256)


def run(arguments: argparse.Namespace) -> int:
    """Load the model and talk until the input ends; on pipes only answers go to standard output."""
    from lmrl.models import load
    from lmrl.stages.asking import model_path
    from lmrl.stages.chat import ChatSession
    from lmrl.stages.chat.loop import converse
    from lmrl.training.devices import torch_device

    if arguments.system and arguments.complete:
        raise SettingsError("--system and --complete are both given; completed text has no system prompt. Drop one.")
    session = ChatSession(
        load(
            model_path(arguments.model),
            device=torch_device(arguments.device),
            trust_remote_code=arguments.trust_remote_code,
        ),
        system=arguments.system,
        sampling=read_sampling(arguments),
        seed=arguments.seed,
        complete=arguments.complete,
    )
    if arguments.load:
        session.load(arguments.load)
        if arguments.system and session.system not in ("", arguments.system):
            raise SettingsError(
                f"--system is given, but the conversation in {arguments.load} has a system prompt of its own; drop it, "
                "or set another one with /system in the chat"
            )
        session.system = arguments.system or session.system
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        converse(session, read=lambda: _ask(session.chats), notice=_dim)
        print()
    else:
        converse(session, read=_read_line, interruptible=False)
    return 0


def _ask(chats: bool) -> str:
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - gives `input` a history and line editing
    name = "you> " if chats else "text> "
    return input(f"{HIDDEN.format(BOLD)}{name}{HIDDEN.format(PLAIN)}")


def _dim(line: str) -> None:
    print(f"{DIM}{line}{PLAIN}", flush=True)


def _read_line() -> str:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not {error.encoding} (byte {error.start}); convert it") from error
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


SPEC = CommandSpec(
    name="chat",
    add_arguments=add_arguments,
    run=run,
    summary="chat with a model in the terminal; a model without a chat template completes text",
    example='lmrl chat runs/sft-1 --system "You answer in one sentence." --temperature 0.7',
)
