"""Sections that pick a plugin by name: ``[optimizer] name = "..."``, with a table of settings for each plugin."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lmrl.config.types import found_text
from lmrl.config.values import READER, build
from lmrl.errors import SettingsError

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager

Config = TypeVar("Config")
KIND = "lmrl.config.kind"
"""Key of a field's metadata: the kind of plugin that the section picks."""
INSTEAD = "lmrl.config.instead"
"""Key of a field's metadata: the setting beside it whose names are picked instead, where it is not empty."""


@dataclass
class NoSettings:
    """Settings of a plugin that declares none."""


@dataclass(frozen=True)
class PluginChoice:
    """A plugin picked by name, and the settings tables of this and of other plugins of its kind.

    In TOML: ``[optimizer]`` with ``name = "x"``, and ``[optimizer.x]`` with the settings of x. ``section`` is the
    dotted path of the section, for messages; ``is_default`` is True if nobody has set the name. An empty name
    stands for a section that holds tables alone, because another setting (``trackers``) picks the plugins.
    """

    kind: str
    name: str
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    section: str = field(default="", compare=False)
    is_default: bool = field(default=False, compare=False)

    def resolve(self, plugin_manager: PluginManager) -> tuple[Any, Any]:
        """Return the chosen plugin's record and its settings, built from its own table.

        The tables of other plugins are checked too. Raises ``SettingsError`` for a name that nobody offers,
        ``PluginError`` for one that two plugins offer.
        """
        if _is_imported(self.kind, self.name):
            raise SettingsError(
                f"{self._where}.name is {self.name!r}, a {self.kind} that is imported or a path and not registered, "
                "so it declares no settings; lmrl.rewards.resolve builds it"
            )
        spec = plugin_manager.get(self.kind, self.name, f"{self._where}.name: ")
        built = self.settings(plugin_manager)
        return spec, built[self.name] if self.name in built else self.built(self.name, plugin_manager)

    def built(self, name: str, plugin_manager: PluginManager) -> Any:
        """Return the settings of one plugin, from its table if there is one."""
        spec = plugin_manager.get(self.kind, name, f"[{self._path(name)}]: ")
        return build(spec.settings or NoSettings, self.tables.get(name, {}), self._path(name))

    def settings(self, plugin_manager: PluginManager) -> dict[str, Any]:
        """Return the built settings of every table, by the plugin's name.

        A reward named ``module:function`` or by a path has no declared settings; its table stays as it is, and so does
        that of a name which two plugins offer, unless it is the chosen one.
        """
        records, names = plugin_manager.records(self.kind), plugin_manager.names(self.kind)
        built: dict[str, Any] = {}
        for name, table in self.tables.items():
            if _is_imported(self.kind, name) or (name in names and name not in records and name != self.name):
                built[name] = dict(table)
            else:
                built[name] = self.built(name, plugin_manager)
        return built

    def resolved(self, plugin_manager: PluginManager, picked: Iterable[str] = ()) -> PluginChoice:
        """Return the choice with complete settings: every table, and the chosen plugin's even if it was left out.

        ``picked`` names the plugins of a section that holds tables alone.
        """
        built = self.settings(plugin_manager)
        if not self.name:
            chosen = [name for name in picked if plugin_manager.get(self.kind, name).settings is not None]
            built |= {name: self.built(name, plugin_manager) for name in chosen}
        elif not _is_imported(self.kind, self.name):
            _, chosen = self.resolve(plugin_manager)
            built = {self.name: chosen, **{name: value for name, value in built.items() if name != self.name}}
        from lmrl.config.writing import plain

        return dataclasses.replace(self, tables={name: plain(value, self._path(name)) for name, value in built.items()})

    @property
    def _where(self) -> str:
        return self.section or self.kind

    def _path(self, name: str) -> str:
        return f"{self._where}.{name}"


def choice(kind: str, name: str, instead: str = "") -> Any:
    """Return a dataclass field that picks a plugin of a kind, ``reward: PluginChoice = choice("reward", "length")``.

    ``instead`` names a setting of the same dataclass whose names, if it has any, are picked instead of the one here.
    """

    def read(value: Any, where: str) -> PluginChoice:
        if isinstance(value, PluginChoice):
            return dataclasses.replace(value, section=where)
        return _read(kind, name, {} if value is dataclasses.MISSING else value, where)

    return field(
        default_factory=lambda: PluginChoice(kind, name, is_default=True),
        metadata={READER: read, KIND: kind, INSTEAD: instead},
    )


def resolved(config: Config, plugin_manager: PluginManager) -> Config:
    """Return a copy of a configuration in which every plugin's section holds the complete settings of its plugin."""
    changes: dict[str, Any] = {}
    for one in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, one.name)
        if isinstance(value, PluginChoice):
            placed = value if value.section else dataclasses.replace(value, section=one.name)
            picked = getattr(config, one.metadata[INSTEAD]) if one.metadata.get(INSTEAD) else ()
            changes[one.name] = placed.resolved(plugin_manager, picked)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[one.name] = resolved(value, plugin_manager)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def select_by_path(cls: type, mapping: dict[str, Any], given: Iterable[str]) -> list[str]:
    """Select the plugin whose ``path`` is among the settings given on the command line, and return a note for each.

    A path means that its file is wanted: ``prompts.file.path`` sets ``prompts.name`` to "file" in ``mapping``, unless
    the command line sets that name, or paths of several plugins.
    """
    names = list(given)
    notes: list[str] = []
    for one in dataclasses.fields(cls):
        paths = [name.split(".")[1:] for name in names if name.startswith(f"{one.name}.")]
        wanted = [path[0] for path in paths if len(path) == 2 and path[1] == "path"]
        instead = one.metadata.get(INSTEAD)
        if KIND not in one.metadata or len(wanted) != 1 or ["name"] in paths or (instead and mapping.get(instead)):
            continue
        before = mapping[one.name].get("name", default_name(one))
        if before and before != wanted[0]:
            mapping[one.name]["name"] = wanted[0]
            notes.append(f"{one.name}.{wanted[0]}.path selects {one.name}.name={wanted[0]} instead of {before}")
    return notes


def default_name(field: dataclasses.Field[Any]) -> str:
    """Return the name that a field made by ``choice`` has by default."""
    picked: PluginChoice = field.default_factory()  # type: ignore[operator]
    return picked.name


def _read(kind: str, default: str, value: Any, where: str) -> PluginChoice:
    if not isinstance(value, Mapping):
        hint = f'; write {where}.name = "{value}"' if isinstance(value, str) else ""
        raise SettingsError(f"{where} is {found_text(value)}; expected a table with the key name{hint}")
    tables: dict[str, dict[str, Any]] = {}
    if not default and "name" in value:
        raise SettingsError(f"unknown setting '{where}.name'; [{where}] holds the tables of {kind}s alone")
    for key, table in value.items():
        if key == "name":
            continue
        if not isinstance(table, Mapping):
            question = (
                f"; did you mean '{where}.name'?" if difflib.get_close_matches(str(key), ["name"], cutoff=0.7) else "."
            )
            raise SettingsError(
                f"unknown setting '{where}.{key}'{question} [{where}] holds only name; settings of the {kind} itself "
                f"stand in its own table, [{where}.{value.get('name', default)}]."
            )
        tables[str(key)] = dict(table)
    name = value.get("name", default)
    if not isinstance(name, str):
        raise SettingsError(f"{where}.name is {found_text(name)}; expected the name of one {kind}, as a string")
    return PluginChoice(kind, name, tables, where, is_default="name" not in value)


def _is_imported(kind: str, name: str) -> bool:
    """Say whether a reward is named by ``module:function`` or by the path of a reward model."""
    return kind == "reward" and (":" in name or "/" in name or name.startswith((".", "~")))
