"""The entry point of `lmrl`: finds the subcommand, which a plugin may have brought, and runs it."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmrl import __version__
from lmrl.errors import LmrlError, SettingsError
from lmrl.moved import ADVICE, moved_hint
from lmrl.plugins import PluginManager, PluginWarning
from lmrl.plugins.info import last_line
from lmrl.plugins.specs import CommandSpec

DEBUG_VARIABLE = "LMRL_DEBUG"
LISTING = "plugins"
"""The command that must work whatever state the plugins are in."""
INTERRUPTED = 130
BROKEN_PIPE = 141
USAGE = 2
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
"""Errors of a file system, which a traceback would not explain."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lmrl` with these arguments (default: the process's) and return its exit code.

    An error that lmrl raises on purpose, or a file that cannot be written, is one paragraph on standard error and exit
    code 2; ``LMRL_DEBUG=1`` adds the traceback. Ctrl-C is exit code 130.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _shown_plainly(warnings.showwarning)
        _show_notes()
        try:
            code = _dispatch(list(sys.argv[1:] if argv is None else argv))
            _leave_process_group()
            sys.stdout.flush()  # a reader that has gone away is noticed here, not while the interpreter ends
            return code
        except BrokenPipeError:
            # What is still buffered has no reader; without this the interpreter complains as it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except (LmrlError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in REFUSED:
                raise
            if os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}:
                traceback.print_exc()
            said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            print(f"error: {said}", file=sys.stderr)
            return USAGE
        except ImportError as error:
            hint = moved_hint(error)
            if not hint and ADVICE not in str(error):
                raise
            if os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}:
                traceback.print_exc()
            print(f"error: {last_line(error)}{hint and f'. {hint}'}", file=sys.stderr)
            return USAGE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except SystemExit as error:  # argparse, after it has printed help or a usage error
            return error.code if isinstance(error.code, int) else USAGE


def _leave_process_group() -> None:
    """End what ranks talk through, all at once: left to the interpreter's end, it can crash a process."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)  # torch is not imported for this
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _show_notes() -> None:
    """Print what lmrl notes about data and models (rows left out, the shape they were taken for) to standard error."""
    logger = logging.getLogger("lmrl")
    if not logger.handlers:
        logger.addHandler(_Notes())
        logger.setLevel(logging.INFO)


class _Notes(logging.Handler):
    """Writes above a progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"note: {record.getMessage()}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    arguments, given = _take_plugin_files(arguments)
    files: Sequence[str | Path] = given
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    first = arguments[0] if arguments else ""
    if first == "--version":
        print(f"lmrl {__version__}")
        return 0
    folder = _resumed_folder(arguments)
    if folder:
        from lmrl.training.plugin_files import resumed_files

        files = resumed_files(folder, files)
    manager = PluginManager(files, strict=False if name == LISTING else None)
    commands = {**manager.commands(), LISTING: manager.core_commands()[LISTING]}
    if first in {"", "-h", "--help"}:
        _top_parser(commands).print_help()
        return 0
    if first.startswith("-"):
        _top_parser(commands).error(f"unknown option {first}; options of a command stand after its name")
    command = commands[name] if name == LISTING else manager.get("command", name)
    manager.register_environments()
    return _run(command, arguments[1:], manager)


def _run(command: CommandSpec, arguments: list[str], manager: PluginManager) -> int:
    parser = argparse.ArgumentParser(
        prog=f"lmrl {command.name}",
        description=_sentence(command.summary),
        epilog=f"example:\n  {command.example or f'lmrl {command.name}'}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_plugin_option(parser)
    command.add_arguments(parser)
    namespace = _parsed(parser, arguments)
    namespace.plugin_manager, namespace.command_name = manager, command.name
    return int(command.run(namespace) or 0)


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    try:
        # Lets options stand between overrides: lmrl rl recipe.toml --quiet train.updates=5
        return parser.parse_intermixed_args(arguments)
    except TypeError:  # a plugin's command with subcommands of its own, which argparse cannot intermix
        return parser.parse_args(arguments)


def _top_parser(commands: dict[str, CommandSpec]) -> argparse.ArgumentParser:
    width = max(len(name) for name in commands)
    listing = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in commands.items())
    parser = argparse.ArgumentParser(
        prog="lmrl",
        usage="lmrl [--plugin FILE] COMMAND ...",
        description="Reinforcement learning for language models.",
        epilog=f"commands:\n{listing}\n\n`lmrl COMMAND --help` explains a command.\n\nexample:\n  lmrl config train",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    _add_plugin_option(parser)
    return parser


def _add_plugin_option(parser: argparse.ArgumentParser) -> None:
    # Only for the help: these are taken out beforehand, because a plugin may bring the command itself.
    parser.add_argument("--plugin", metavar="FILE", action="append", help="load this Python file as a plugin")


def _take_plugin_files(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without `--plugin FILE`, which may stand anywhere before `--`, and the files."""
    rest: list[str] = []
    files: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            rest += [argument, *waiting]
        elif argument == "--plugin":
            file = next(waiting, "")
            if not file or file.startswith("-"):
                raise SettingsError("--plugin stands without a file; expected --plugin FILE")
            files.append(file)
        elif argument.startswith("--plugin="):
            files.append(argument.removeprefix("--plugin="))
        else:
            rest.append(argument)
    return rest, files


def _resumed_folder(arguments: list[str]) -> str:
    """Return the value of `--resume`, which is read before the command, because the run's plugin files may bring it."""
    folder = ""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument == "--":
            break
        if argument == "--resume":
            folder = following
        elif argument.startswith("--resume="):
            folder = argument.removeprefix("--resume=")
    return folder


def _shown_plainly(usual: Callable[..., None]) -> Callable[..., None]:
    """Return a ``warnings.showwarning`` that prints warnings about plugins without a line of lmrl's own source."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, PluginWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *rest, **named)

    return show


def _sentence(summary: str) -> str:
    return f"{summary[:1].upper()}{summary[1:]}" + ("" if not summary or summary.endswith(".") else ".")


if __name__ == "__main__":
    sys.exit(main())
