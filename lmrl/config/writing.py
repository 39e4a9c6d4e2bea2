"""From typed dataclasses back to TOML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from lmrl.config.choices import PluginChoice
from lmrl.errors import SettingsError


def to_toml(instance: Any) -> str:
    """Return a configuration as TOML that ``build`` reads back to an equal one; fields that are None are left out."""
    return tomli_w.dumps(plain(instance))


def plain(value: Any, where: str = "") -> Any:
    """Return a value in TOML's own types; raises ``SettingsError`` for one that TOML cannot hold."""
    if isinstance(value, PluginChoice):
        return {"name": value.name, **{name: plain(table, f"{where}.{name}") for name, table in value.tables.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, where)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, bool | int | float | str):
        return value
    raise SettingsError(f"{where.lstrip('.')} is {value!r} ({type(value).__name__}), which TOML cannot hold")


def _fields(instance: Any, where: str) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for field in dataclasses.fields(instance):
        value, path = getattr(instance, field.name), f"{where}.{field.name}"
        if not field.init:
            continue
        if value is None:
            # Left out, it would come back as the default: only a default of None survives that.
            if field.default is not None:
                raise SettingsError(f"{path.lstrip('.')} is None, but its default is not; TOML cannot hold that")
            continue
        table[field.name] = plain(value, path)
    return table
