"""`lmrl new-plugin`: write the folder of a new plugin, which installs, passes its tests and runs."""

from __future__ import annotations

import argparse

from lmrl.plugins import PluginManager
from lmrl.plugins.scaffold import USES, new_plugin, short_run
from lmrl.plugins.specs import CommandSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lmrl new-plugin`."""
    parser.add_argument("name", help="what recipes will call it, and the module's name: lower-case letters, digits, _")
    parser.add_argument("--kind", default="optimizer", metavar="KIND", help=f"{', '.join(USES)} (default: optimizer)")
    parser.add_argument("--folder", default=".", help="where to make the folder NAME (default: here)")


def run(arguments: argparse.Namespace) -> int:
    """Write the plugin and say how to go on."""
    manager: PluginManager = arguments.plugin_manager
    kind = arguments.kind
    taken = manager.names(kind) if kind in USES else ()
    path = new_plugin(arguments.name, arguments.folder, kind=kind, taken=taken)
    print(f"Wrote {path}: " + ", ".join(sorted(file.name for file in path.iterdir())))
    print("\nTo install it, test it and use it:\n")
    print(f"  cd {path}")
    print('  python -m pip install -e ".[test]"')
    print("  python -m pytest")
    print(f"  {short_run(kind, arguments.name)}")
    return 0


SPEC = CommandSpec(
    name="new-plugin",
    add_arguments=add_arguments,
    run=run,
    summary="write a plugin to start from: an optimizer, a reward, a dataset, an engine or a benchmark",
    example="lmrl new-plugin my_algorithm --folder plugins",
)
