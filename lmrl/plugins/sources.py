"""Sources of plugins: entry points of installed distributions, and single files."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from lmrl.errors import PluginError, SettingsError
from lmrl.plugins.hookspecs import PROJECT

DISABLE_VARIABLE = "LMRL_DISABLE_PLUGINS"
STRICT_VARIABLE = "LMRL_STRICT_PLUGINS"


class EntryPointLike(Protocol):
    """The part of an ``importlib.metadata.EntryPoint`` that the manager reads."""

    @property
    def name(self) -> str:
        """The plugin's name, by which it is disabled."""
        ...

    @property
    def value(self) -> str:
        """The module, or ``module:object``."""
        ...

    def load(self) -> Any:
        """Import the plugin."""
        ...


def installed_entry_points() -> list[EntryPointLike]:
    """Return the entry points of the group ``lmrl`` in all installed distributions."""
    return list(importlib.metadata.entry_points(group=PROJECT))


def origin(entry_point: EntryPointLike) -> tuple[str, str]:
    """Return the name and version of the distribution that an entry point belongs to, empty where unknown."""
    distribution = getattr(entry_point, "dist", None)
    if distribution is None:
        return "", ""
    try:
        return str(distribution.name), str(distribution.version)
    except Exception:  # of a distribution that was half removed, the metadata cannot be read
        return "", ""


def ordered(entry_points: Iterable[EntryPointLike]) -> list[EntryPointLike]:
    """Return entry points in an order that does not depend on the file system."""
    return sorted(entry_points, key=lambda entry_point: (entry_point.name, *origin(entry_point), entry_point.value))


def disabled_names(given: Iterable[str] | None) -> frozenset[str]:
    """Return the names of disabled plugins: those given, or those in ``LMRL_DISABLE_PLUGINS``."""
    if isinstance(given, str):
        given = given.split(",")
    names = os.environ.get(DISABLE_VARIABLE, "").split(",") if given is None else given
    return frozenset(name.strip() for name in names if name.strip())


def strict_from_environment() -> bool:
    """Return whether ``LMRL_STRICT_PLUGINS`` asks for an error where a plugin fails to load."""
    text = os.environ.get(STRICT_VARIABLE, "").strip().lower()
    if text in {"", "0", "false", "no", "off"}:
        return False
    if text in {"1", "true", "yes", "on"}:
        return True
    raise SettingsError(f"{STRICT_VARIABLE} is {text!r}; expected 1 or 0")


def load_file(file: str | Path) -> ModuleType:
    """Import a plugin from a Python file, under a module name that no other file has and that worker processes find."""
    path = Path(file).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise PluginError(f"the plugin file {file} {what}; expected a Python file with lmrl hooks")
    if path.suffix != ".py":
        raise PluginError(f"the plugin file {file} does not end in .py; expected a Python file with lmrl hooks")
    from lmrl.plugins.files import import_file  # late: every import of a process that has it passes its finder

    return import_file(path)
