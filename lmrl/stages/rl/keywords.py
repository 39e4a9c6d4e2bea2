"""The configuration of an ``RLTrainer`` from keywords: settings by their last names, or whole sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmrl.config import PluginChoice, build, refuse_unread
from lmrl.config.types import field_types, is_section
from lmrl.errors import SettingsError, unknown
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import OptimizerSpec
from lmrl.stages.rl.config import RLConfig

SECTIONS = tuple(
    name
    for name, kind in field_types(RLConfig).items()
    if is_section(kind) and kind is not PluginChoice and name not in ("data", "auxiliary")
)
DEFAULTS: dict[str, dict[str, Any]] = {"evaluation": {"prompts": 0}}
"""Defaults that differ from those of a recipe: prompts given in a program are all trained on."""
OF_RUNS = ("run.folder", "checkpoint.every", "checkpoint.keep", "trackers", "tracker")
"""Settings of run folders, which a trainer made of keywords does not write."""


def config_of(
    model: str, optimizer: str | Mapping[str, Any], settings: Mapping[str, Any], plugins: PluginManager
) -> RLConfig:
    """Return the configuration of these keywords.

    Each is a section or another setting of the top level with its value, or a setting inside a section, by its last
    name. Raises ``SettingsError`` for a name that is unknown, with the nearest one, that several sections have, that is
    given twice, or that is not read.
    """
    table: dict[str, Any] = {name: dict(values) for name, values in DEFAULTS.items()}
    table["model"], table["optimizer"] = model, chosen(optimizer)
    top = [name for name in field_types(RLConfig) if name not in ("model", "optimizer", "prompts", "reward", "data")]
    given: list[str] = []
    for name in sorted(settings, key=lambda name: name not in top):  # sections first, whatever the order
        path = name if name in top else _path_of(name, top, plugins.optimizers().get(table["optimizer"]["name"]))
        section, _, inside = path.rpartition(".")
        if not section:
            table[path] = _whole(path, settings[name])
            whole = path in (*SECTIONS, "auxiliary")
            given += [f"{path}.{one}" for one in settings[name]] if whole else [path]
            continue
        if path in given:
            raise SettingsError(f"{inside} is given twice, alone and in {section}; leave one of them out")
        table.setdefault(section, {})[inside] = settings[name]
        given.append(path)
    for path in given:
        if path in OF_RUNS:
            raise SettingsError(
                f"{path} is of run folders, and RLTrainer writes none unless it is made by from_config(config); leave "
                "it out, and save(folder) writes a checkpoint"
            )
    config = build(RLConfig, table)
    refuse_unread(config, plugins, given, "as a keyword")
    return config


def _path_of(name: str, top: Sequence[str], optimizer: OptimizerSpec | None) -> str:
    """Return the only section that has a setting of this name, a dot, and the name."""
    kinds = field_types(RLConfig)
    places = [section for section in SECTIONS if name in field_types(kinds[section])]
    if len(places) > 1:
        examples = " or ".join(f"{place}={{{name!r}: ...}}" for place in places)
        raise SettingsError(f"the setting {name!r} is in {len(places)} sections; say which one: {examples}")
    if not places:
        if optimizer is not None and name in field_types(optimizer.settings):
            mapping = f"{{'name': {optimizer.name!r}, {name!r}: ...}}"
            raise SettingsError(f"{name} is a setting of the optimizer {optimizer.name}; pass optimizer={mapping}")
        known = [*top, *(one for section in SECTIONS for one in field_types(kinds[section]))]
        raise SettingsError(unknown("setting", name, known))
    return f"{places[0]}.{name}"


def _whole(name: str, value: Any) -> Any:
    """Return the value of a setting at the top level, a section with its defaults."""
    if name not in SECTIONS:
        return value
    if not isinstance(value, Mapping):
        raise SettingsError(f"{name} is {value!r}; expected a mapping of settings, such as {name}={{...}}")
    return {**DEFAULTS.get(name, {}), **value}


def chosen(optimizer: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of an optimizer by its name, or of its settings with a ``name``."""
    if isinstance(optimizer, str):
        return {"name": optimizer}
    if "name" not in optimizer:
        raise SettingsError(f"optimizer has the keys {', '.join(optimizer)}; expected 'name' among them")
    name = str(optimizer["name"])
    return {"name": name, name: {key: value for key, value in optimizer.items() if key != "name"}}
