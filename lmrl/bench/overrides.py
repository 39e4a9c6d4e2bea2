"""Overrides of `lmrl bench run` that change nothing: each is an error that names the option or setting to use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmrl.bench.kinds import GROUP, kind_named
from lmrl.bench.running import chosen_optimizers
from lmrl.bench.suite import SMOKE, Suite
from lmrl.bench.suite_kind import SuiteKind, SuiteRun
from lmrl.config import override_names
from lmrl.errors import SettingsError, unknown

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager

OPTIONS = {"optimizers": "--optimizers", "seeds": "--seeds", "betas": "--beta", "only": "--tasks"}


def refuse_idle_overrides(
    overrides: Sequence[str], asked: Suite, suite: Suite, changes: Mapping[str, Any], plugins: PluginManager
) -> None:
    """Raise ``SettingsError`` for an override that no run of the suite reads.

    ``asked`` is the suite as its file has it, ``suite`` with the overrides and with ``changes``, the options.
    """
    kind = kind_named(suite.kind, plugins)
    optimizers = chosen_optimizers(suite, kind, plugins)
    models = {task.get("model") for task in suite.tasks.values()}
    for name in override_names(overrides):
        section, _, rest = name.partition(".")
        of = rest.partition(".")[0]
        if section == SMOKE:
            raise SettingsError(f"{name} is set, but overrides come after the toy sizes. Set {rest} itself.")
        if section in changes:
            raise SettingsError(f"{name} and {OPTIONS[section]} are both given; expected one of them.")
        if section == "members":
            raise SettingsError(f"{name} is set, but only a suite of the kind {GROUP} has members. Leave it out.")
        if section == "tasks" and of not in asked.tasks:
            raise SettingsError(f"{name}: {unknown('task', of, asked.tasks)} A new task belongs in a suite file.")
        if section == "tasks" and of not in suite.tasks:
            raise SettingsError(f"{name} is set, but --tasks leaves {of} out. Name it there too, or drop the setting.")
        if section == "recipes" and of not in optimizers:
            raise SettingsError(f"{name} is set, but the suite does not run {of}: {', '.join(optimizers)}.")
        if section == "models" and of not in models:
            raise SettingsError(f"{name} is set, but no task of this run begins with the model {of}.")
    if overrides:
        _refuse_unread(override_names(overrides), kind, suite, optimizers, plugins)


def _refuse_unread(
    names: Iterable[str], kind: SuiteKind, suite: Suite, optimizers: Iterable[str], plugins: PluginManager
) -> None:
    """Raise ``SettingsError`` for a setting that no run of the suite reads, as far as its kind knows."""
    runs = [SuiteRun(task, optimizer, suite.betas[0], 0) for task in suite.tasks for optimizer in optimizers]
    found = {run: kind.unread(suite, run, plugins) for run in runs}
    unused = {run: settings for run, settings in found.items() if settings is not None}
    for name in names:
        parts = name.split(".")
        start = parts.index("settings") + 1 if "settings" in parts[:3] and parts[0] != "recipes" else 0
        above = [".".join(parts[start:end]) for end in range(len(parts), start, -1)] if start else []
        mine = [settings for run, settings in unused.items() if parts[0] != "tasks" or parts[1] == run.task]
        switches = [next((settings[one] for one in above if one in settings), "") for settings in mine]
        if switches and all(switches):
            raise SettingsError(
                f"{name} is set, but the runs read it only with {switches[0]}. Set that too, or drop it."
            )
