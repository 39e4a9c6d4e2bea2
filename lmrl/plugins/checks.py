"""Checks that a module is a sound plugin: every hook exists, is marked, and takes arguments that its signature has."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pluggy

from lmrl.errors import PluginError, unknown
from lmrl.plugins import hookspecs
from lmrl.plugins.records import KINDS, OBSERVERS

HOOKS = tuple(kind.hook for kind in KINDS.values()) + OBSERVERS


def new_pluggy_manager() -> pluggy.PluginManager:
    """Return a pluggy manager that knows the hooks and holds no plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def check_plugin(module: Any) -> tuple[str, ...]:
    """Return the hooks that a plugin implements; raises ``PluginError`` for one that is misspelt or unmarked."""
    # A manager of its own, so that a plugin that pluggy refuses half-way leaves no trace in the real one.
    manager = new_pluggy_manager()
    try:
        manager.register(module)
    except pluggy.PluginValidationError as error:
        raise PluginError(_unknown_argument(module) or " ".join(str(error).split())) from error
    callers = manager.get_hookcallers(module) or []
    for caller in callers:
        if not caller.has_spec() and not all(found.optionalhook for found in caller.get_hookimpls()):
            raise PluginError(unknown("hook", caller.name, HOOKS))
    for name in _unmarked(module):
        raise PluginError(f"the function {name} has a hook's name but no mark; write @lmrl.hookimpl above it")
    found = tuple(caller.name for caller in callers if caller.has_spec())
    if not found:
        raise PluginError(f"it implements no hook; mark at least one of {', '.join(HOOKS)} with @lmrl.hookimpl")
    return found


def _unknown_argument(module: Any) -> str:
    """Return the message for the first argument that its hook does not have, or the empty string."""
    for name in HOOKS:
        function = inspect.getattr_static(module, name, None)
        if not inspect.isfunction(function):
            continue
        known = list(inspect.signature(getattr(hookspecs, name)).parameters)
        for argument, parameter in inspect.signature(function).parameters.items():
            read = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
            if read and argument not in known:
                return unknown(f"argument of the hook {name}:", argument, known)
    return ""


def _unmarked(module: Any) -> Iterator[str]:
    for name in HOOKS:
        function = inspect.getattr_static(module, name, None)
        if inspect.isfunction(function) and not hasattr(function, f"{hookspecs.PROJECT}_impl"):
            yield name
