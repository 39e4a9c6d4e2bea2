"""TOML files and dotted overrides, as plain mappings."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmrl.config.types import found_text
from lmrl.errors import SettingsError, nearest


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return a TOML file's content; raises ``SettingsError`` with the file and the line of what is wrong."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SettingsError(f"the configuration file {path} {_reason(file, error)}") from error
    try:
        text = data.decode("utf-8-sig")  # Windows editors write a byte-order mark, which TOML does not allow
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SettingsError(f"{path}, line {line}: not UTF-8, which TOML files are written in") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = str(error)
        place = re.search(r" \(at line (\d+), column (\d+)\)$", problem)
        if place:
            problem = problem[: place.start()]
            where = f"line {place[1]}, column {place[2]}"
        else:  # "(at end of document)"
            where = f"line {text.count(chr(10)) + 1}"
        advice = "Strings need quotes in TOML, and each key stands once."
        raise SettingsError(f"{path}, {where}: {problem}. {advice}") from error


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``mapping`` with dotted overrides set, later ones last.

    A value is read as TOML (``1e-5``, ``true``, ``["a"]``) and is a plain string if that fails. An inline table
    replaces the whole table. Raises ``SettingsError`` for an override without ``=`` or below a value that is no table.
    """
    result: dict[str, Any] = copy.deepcopy(dict(mapping))
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = _parts(key.strip())
        if not equals or not parts:
            raise SettingsError(f"the override {override!r} is malformed; expected section.key=value")
        table = result
        for depth, part in enumerate(parts[:-1], start=1):
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SettingsError(
                    f"the override {override!r} sets something below {'.'.join(parts[:depth])}, which is "
                    f"{found_text(inner)} and no table"
                )
            table = inner
        table[parts[-1]] = _value(text.strip())
    return result


def override_names(overrides: Iterable[str]) -> list[str]:
    """Return the dotted names of the settings that overrides set; an inline table sets each of its own.

    >>> override_names(["kl.beta=0", "optimizer={name = 'grpo', grpo = {clip_range = 0.3}}"])
    ['kl.beta', 'optimizer.name', 'optimizer.grpo.clip_range']
    """
    names: list[str] = []
    for override in overrides:
        key, _, text = override.partition("=")
        names += _leaves(".".join(_parts(key.strip())), _value(text.strip()))
    return names


def _leaves(name: str, value: Any) -> list[str]:
    if not isinstance(value, dict) or not value:
        return [name]
    return [leaf for key, item in value.items() for leaf in _leaves(f"{name}.{key}", item)]


def _parts(key: str) -> list[str]:
    """Split a dotted key; parts in quotes may hold dots. An empty list means that it is malformed."""
    if '"' not in key and "'" not in key:
        parts = [part.strip() for part in key.split(".")]
        return parts if all(parts) else []
    try:
        table: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return []
    parts = []
    while isinstance(table, dict) and len(table) == 1:
        ((part, table),) = table.items()
        parts.append(part)
    return parts


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # Text with a line break could bring further keys; then it was meant as text.
    return parsed["value"] if set(parsed) == {"value"} else text


def _reason(file: Path, error: OSError) -> str:
    if file.is_dir():
        return "is a folder; expected a TOML file"
    if isinstance(error, FileNotFoundError):
        folder = file.parent
        guess = nearest(file.name, [path.name for path in folder.glob("*.toml")]) if folder.is_dir() else ""
        return "does not exist" + (f"; did you mean {folder / guess}?" if guess else "")
    return f"cannot be read: {error.strerror or error}"
