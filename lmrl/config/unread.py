"""Settings that nothing reads under the chosen options: an error on the command line, a counted note in a recipe.

A settings dataclass declares its rules in a method ``unread()``, which returns names of its fields and, for each, the
setting that makes it count. A stage's configuration declares rules between sections in ``unread_sections(plugins)``.
The tables of plugins that are not selected follow from ``PluginChoice``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lmrl.config.choices import INSTEAD, PluginChoice
from lmrl.config.help import default_of
from lmrl.errors import SettingsError

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager

SHOWN = 4
"""Settings that a note names; it counts all of them."""


def only_if(read: bool, switch: str, *names: str) -> dict[str, str]:
    """Return the names as keys and ``switch`` as each value, or nothing if they are ``read``.

    >>> only_if(False, "controller=adaptive", "target", "horizon")
    {'target': 'controller=adaptive', 'horizon': 'controller=adaptive'}
    """
    return {} if read else dict.fromkeys(names, switch)


def all_but(section: Any, *kept: str) -> tuple[str, ...]:
    """Return the names of a dataclass's fields without ``kept``."""
    return tuple(field.name for field in dataclasses.fields(section) if field.name not in kept)


def unread(config: Any, plugins: PluginManager) -> dict[str, str]:
    """Return the dotted names of the settings and sections that nothing reads, each with the setting that it needs.

    A name stands for everything below it. Raises ``SettingsError`` for a plugin's table that is wrong.
    """
    between = getattr(config, "unread_sections", None)
    found: dict[str, str] = dict(between(plugins)) if between else {}
    for name, switch in _below(config, "", plugins):
        found.setdefault(name, switch)
    return found


def refuse_unread(
    config: Any, plugins: PluginManager, given: Iterable[str], where: str = "on the command line"
) -> None:
    """Raise ``SettingsError`` if nothing reads one of the settings ``given`` on the command line, as dotted names."""
    found = unread(config, plugins)
    problems = []
    for name in given:
        switch = _nearest(name, found)
        if switch:
            problems.append(f"{name} is set {where}, but this run reads it only with {switch}")
    if problems:
        wanted = "one" if len(problems) == 1 else "each"
        raise SettingsError(f"{'; '.join(problems)}. Set {wanted} that way too, or leave it out.")


def unread_note(config: Any, plugins: PluginManager) -> str:
    """Return a line that counts and names the settings that differ from their defaults and that nothing reads.

    The empty string stands for none. It is for recipes, which may hold the settings of several optimizers.
    """
    declared = unread(config, plugins)
    changed = {name: _nearest(name, declared) for name in _changed(config, None, "", plugins)}
    found = [f"{name} (read with {switch})" for name, switch in changed.items() if switch]
    if not found:
        return ""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    subject = "1 setting is" if len(found) == 1 else f"{len(found)} settings are"
    return f"{subject} set that this run does not read: {', '.join(found[:SHOWN])}{more}"


def _below(section: Any, where: str, plugins: PluginManager) -> Iterable[tuple[str, str]]:
    """Yield what the section and those inside it declare, by full names."""
    declared = getattr(section, "unread", None)
    for name, switch in declared().items() if callable(declared) else ():
        yield f"{where}{name}", f"{where}{switch}"
    for field in dataclasses.fields(section):
        value, path = getattr(section, field.name), f"{where}{field.name}"
        if isinstance(value, PluginChoice):
            yield from _of_choice(value, path, _selected_instead(section, field), plugins)
        elif dataclasses.is_dataclass(value):
            yield from _below(value, f"{path}.", plugins)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if dataclasses.is_dataclass(item):
                    yield from _below(item, f"{path}.{key}.", plugins)


def _of_choice(
    choice: PluginChoice, path: str, instead: tuple[str, Iterable[str]], plugins: PluginManager
) -> Iterable[tuple[str, str]]:
    other, selected = instead
    names = set(selected) or {choice.name}
    for name, settings in dataclasses.replace(choice, section=path).settings(plugins).items():
        if name not in names:
            yield f"{path}.{name}", _switch(choice, path, name, other, selected)
        elif dataclasses.is_dataclass(settings):
            yield from _below(settings, f"{path}.{name}.", plugins)


def _switch(choice: PluginChoice, path: str, name: str, other: str, selected: Iterable[str]) -> str:
    if not choice.name:
        return f"{other} naming {name}"
    return f"{other}.{name} set to a weight" if selected else f"{path}.name={name}"


def _selected_instead(section: Any, field: dataclasses.Field[Any]) -> tuple[str, Iterable[str]]:
    """Return the setting that selects in place of the section's own name, such as reward_weights, and its names."""
    other = field.metadata.get(INSTEAD, "")
    return other, getattr(section, other) if other else ()


def _nearest(name: str, declared: Mapping[str, str]) -> str:
    """Return what the setting or the nearest section around it needs; the empty string if it is read."""
    parts = name.split(".")
    above = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((declared[one] for one in above if one in declared), "")


def _changed(section: Any, initial: Any, where: str, plugins: PluginManager) -> Iterable[str]:
    """Yield the settings that differ from ``initial`` (None: from their fields' defaults); of other plugins all."""
    for field in dataclasses.fields(section):
        value, path = getattr(section, field.name), f"{where}{field.name}"
        before = default_of(field) if initial is None else getattr(initial, field.name)
        if isinstance(value, PluginChoice):
            if value.name != before.name:
                yield f"{path}.name"
            for name, settings in dataclasses.replace(value, section=path).settings(plugins).items():
                if name == value.name and dataclasses.is_dataclass(settings):
                    yield from _changed(settings, None, f"{path}.{name}.", plugins)
                else:
                    yield from (f"{path}.{name}.{key}" for key in value.tables[name])
        elif dataclasses.is_dataclass(value):
            yield from _changed(value, before, f"{path}.", plugins)
        elif isinstance(value, Mapping) and any(map(dataclasses.is_dataclass, value.values())):
            for key, item in value.items():
                yield from _changed(item, None, f"{path}.{key}.", plugins)
        elif value != before:
            yield path
