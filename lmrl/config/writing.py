"""From typed dataclasses back to TOML."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from lmrl.config.choices import PluginChoice
from lmrl.config.types import NONE, enum_text, field_types
from lmrl.config.values import READER, convert
from lmrl.errors import SettingsError


def to_toml(instance: Any) -> str:
    """Return a configuration as TOML that ``build`` reads back to an equal one.

    A field that is None is left out, or written as "none" where its default is another value.
    """
    return tomli_w.dumps(plain(instance))


def plain(value: Any, where: str = "") -> Any:
    """Return a value in TOML's own types; raises ``SettingsError`` for one that TOML cannot hold."""
    if isinstance(value, PluginChoice):
        name = {"name": value.name} if value.name else {}
        return {**name, **{name: plain(table, f"{where}.{name}") for name, table in value.tables.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, where)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, enum.Enum):
        return enum_text(value)
    if isinstance(value, bool | int | float | str):
        return value
    raise SettingsError(f"{where.lstrip('.')} is {value!r} ({type(value).__name__}), which TOML cannot hold")


def _fields(instance: Any, where: str) -> dict[str, Any]:
    table: dict[str, Any] = {}
    kinds = field_types(type(instance))
    for field in dataclasses.fields(instance):
        value, path = getattr(instance, field.name), f"{where}.{field.name}"
        if not field.init:
            continue
        if value is None:
            if field.default is not None:  # left out, it would come back as the default
                table[field.name] = NONE
            continue
        if isinstance(value, str) and READER not in field.metadata and convert(kinds[field.name], value, path) is None:
            raise SettingsError(
                f"{path.lstrip('.')} is the text {value!r}, which is read as no value; write another text"
            )
        table[field.name] = plain(value, path)
    return table
