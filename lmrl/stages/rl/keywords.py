"""The configuration of an ``RLTrainer`` from keywords: settings by their last names, or whole sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmrl.config import build
from lmrl.config.types import field_types, is_section
from lmrl.errors import SettingsError, unknown
from lmrl.stages.rl.config import RLConfig

SECTIONS = tuple(name for name, kind in field_types(RLConfig).items() if is_section(kind))
DEFAULTS: dict[str, dict[str, Any]] = {"evaluation": {"prompts": 0}}
"""Defaults that differ from those of a recipe: prompts given in a program are all trained on."""


def config_of(model: str, optimizer: str | Mapping[str, Any], settings: Mapping[str, Any]) -> RLConfig:
    """Return the configuration of these keywords.

    Each is a section or another setting of the top level with its value, or a setting inside a section, by its last
    name. Raises ``SettingsError`` for a name that is unknown, with the nearest one, that several sections have, or that
    is given twice.
    """
    table: dict[str, Any] = {name: dict(values) for name, values in DEFAULTS.items()}
    table["model"], table["optimizer"] = model, _chosen(optimizer)
    homes: dict[str, list[str]] = {}
    for section in SECTIONS:
        for name in field_types(field_types(RLConfig)[section]):
            homes.setdefault(name, []).append(section)
    top = [name for name in field_types(RLConfig) if name not in ("model", "optimizer", "prompts", "reward")]
    for name in top:  # sections first, whatever the order of the keywords
        if name in settings:
            value = settings[name]
            table[name] = {**DEFAULTS.get(name, {}), **value} if name in SECTIONS else value
    for name, value in settings.items():
        if name in top:
            continue
        places = homes.get(name, [])
        if len(places) > 1:
            examples = " or ".join(f"{place}={{{name!r}: ...}}" for place in places)
            raise SettingsError(f"the setting {name!r} is in {len(places)} sections; say which one: {examples}")
        if not places:
            raise SettingsError(unknown("setting", name, [*top, *homes]))
        section = table.setdefault(places[0], {})
        if name in section and places[0] in settings and name in settings[places[0]]:
            raise SettingsError(f"{name} is given twice, alone and in {places[0]}; leave one of them out")
        section[name] = value
    return build(RLConfig, table)


def _chosen(optimizer: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the section of an optimizer by its name, or of its settings with a ``name``."""
    if isinstance(optimizer, str):
        return {"name": optimizer}
    if "name" not in optimizer:
        raise SettingsError(f"optimizer has the keys {', '.join(optimizer)}; expected 'name' among them")
    name = str(optimizer["name"])
    return {"name": name, name: {key: value for key, value in optimizer.items() if key != "name"}}
