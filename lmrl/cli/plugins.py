"""`lmrl plugins`: what is installed, by whom, which version and plugin API, and what failed to load and why."""

from __future__ import annotations

import argparse
import dataclasses
import json

from lmrl import PLUGIN_API, __version__
from lmrl.cli.tables import make_console, make_table
from lmrl.plugins import PluginInfo, PluginManager
from lmrl.plugins.specs import CommandSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl plugins`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Print every plugin, and any names that two of them offer; 1 if a file that `--plugin` names is broken."""
    manager: PluginManager = arguments.plugin_manager
    listing, conflicts = manager.listing(), manager.conflicts()
    code = 1 if any(info.status == "failed" and info.source.startswith("file ") for info in listing) else 0
    if arguments.json:
        plugins = [dataclasses.asdict(info) for info in listing]
        print(json.dumps({"plugin_api": PLUGIN_API, "plugins": plugins, "conflicts": conflicts}, indent=2))
        return code
    console = make_console()
    columns = ["plugin", "distribution", "version", "API", "offers", "status"]
    with_errors = any(info.error for info in listing)
    table = make_table([*columns, "error"] if with_errors else columns)
    for info in listing:
        api = "" if info.api is None else str(info.api)
        row = [info.name, info.distribution or info.source, info.version, api, _offers(info), info.status]
        table.add_row(*row, *([info.error] if with_errors else []))
    console.print(table)
    console.print(
        f"lmrl {__version__} has plugin API {PLUGIN_API}; a plugin that declares another number is not loaded"
    )
    for conflict in conflicts:
        console.print(f"conflict: {conflict}", soft_wrap=True)
    return code


def _offers(info: PluginInfo) -> str:
    lines = [f"{kind}: {', '.join(names)}" for kind, names in info.offers.items()]
    lines += [f"observes: {', '.join(info.observes)}"] if info.observes else []
    return "\n".join(lines)


SPEC = CommandSpec(
    name="plugins",
    add_arguments=add_arguments,
    run=run,
    summary="list what is installed, by whom, and what failed to load and why",
    example="lmrl plugins --plugin my_reward.py",
)
