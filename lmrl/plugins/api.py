"""Number of the plugin API, and the number that a plugin declares."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

from lmrl.errors import PluginError

PLUGIN_API = 2
"""Number of the interface between lmrl and plugins: hooks, records, and the public names that plugins import.

It is raised when a plugin that works with one version of lmrl can fail with the next: a name moves, an argument or a
column is renamed, a method is called in another way. Additions do not raise it. Version 0.1 of lmrl has number 1.
"""
DECLARATION = "LMRL_PLUGIN_API"
"""Variable of a plugin's module that declares the number the plugin is written for."""


def declared_in_file(file: Path | None) -> Any:
    """Return the number that a module's source declares, without executing it; None where it declares none."""
    if file is None or file.suffix != ".py" or not file.is_file():
        return None
    source = file.read_text(encoding="utf-8", errors="replace")
    if DECLARATION not in source:
        return None
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):  # loading the module reports it
        return None
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == DECLARATION for target in targets)
        if named and isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
            return statement.value.value
    return None


def file_of_entry_point(value: str) -> Path | None:
    """Return the source file of the module that an entry point ``module`` or ``module:object`` names."""
    try:
        found = importlib.util.find_spec(value.partition(":")[0].strip())
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def checked_api(declared: Any) -> int | None:
    """Return the number that a plugin declares, or None; raises ``PluginError`` for any but that of this lmrl."""
    from lmrl import __version__

    if declared is not None and declared != PLUGIN_API:
        raise PluginError(
            f"{DECLARATION} is {declared!r}; expected {PLUGIN_API}, the plugin API of lmrl {__version__}. Install "
            f"versions of the plugin and lmrl with the same number, or change the plugin: docs/migration.md lists "
            f"what changed"
        )
    return None if declared is None else PLUGIN_API
