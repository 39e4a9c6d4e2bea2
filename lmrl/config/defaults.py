"""Check of a settings dataclass: each field has a type that a configuration can hold, and a default of that type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lmrl.config.help import default_of
from lmrl.config.types import (
    MANY,
    TABLES,
    expected_text,
    field_types,
    found_text,
    is_enum,
    is_section,
    not_holdable,
    unaliased,
    union_members,
)
from lmrl.config.values import READER, convert
from lmrl.errors import SettingsError

SCALARS = (bool, int, float, str, Path, type(None))


def check_defaults(cls: type, where: str = "", inside: tuple[type, ...] = ()) -> None:
    """Raise ``SettingsError`` for a field of another type, or with a default that is not of its type.

    Nested dataclasses are checked too; ``where`` is the dotted path of the class in messages.
    """
    kinds = field_types(cls)
    for field in dataclasses.fields(cls):
        if not field.init or READER in field.metadata:
            continue
        path = f"{where}.{field.name}".lstrip(".")
        _check_type(kinds[field.name], path, (*inside, cls))
        try:
            default = default_of(field)
        except Exception as error:
            raise SettingsError(f"the default of {path} cannot be made: {type(error).__name__}: {error}") from error
        if default is not dataclasses.MISSING:
            try:
                check_value(kinds[field.name], default, path)
            except SettingsError as error:
                raise SettingsError(f"the default of {error}") from error


def _check_type(annotation: Any, where: str, inside: tuple[type, ...]) -> None:
    annotation = unaliased(annotation)
    arguments = union_members(annotation)
    origin = get_origin(annotation)
    if arguments is None and (origin in (*MANY, *TABLES) or annotation in (*MANY, *TABLES)):
        arguments = get_args(annotation)
        if origin in TABLES and unaliased(arguments[0]) is not str:
            raise SettingsError(not_holdable(annotation, where))
    if arguments is not None:
        for argument in arguments:
            if argument is not ...:
                _check_type(argument, where, inside)
    elif is_section(annotation):
        if annotation not in inside:
            check_defaults(annotation, where, inside)
    elif annotation is not Any and origin is not Literal and not is_enum(annotation) and annotation not in SCALARS:
        raise SettingsError(not_holdable(annotation, where))


def check_value(annotation: Any, value: Any, where: str) -> None:
    """Raise ``SettingsError`` if a value is not of the annotated type, as a configuration would build it."""
    for place, part in _sections_in(value, where):
        kinds = field_types(type(part))
        for field in dataclasses.fields(part):
            if field.init and READER not in field.metadata:
                check_value(kinds[field.name], getattr(part, field.name), f"{place}.{field.name}")
    if not _alike(convert(annotation, value, where), value):
        raise SettingsError(f"{where} is {found_text(value)}; expected {expected_text(annotation)}")


def _sections_in(value: Any, where: str) -> list[tuple[str, Any]]:
    """Return the dataclass instances that a value is or holds, with their places."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(where, value)]
    if isinstance(value, Mapping):
        return [found for key, item in value.items() for found in _sections_in(item, f"{where}.{key}")]
    if isinstance(value, list | tuple):
        return [found for number, item in enumerate(value) for found in _sections_in(item, f"{where}[{number}]")]
    return []


def _alike(converted: Any, value: Any) -> bool:
    """Return True if a value already was what a configuration would make of it; an integer is a number, too."""
    if type(converted) is float and type(value) is int:
        return converted == value
    if type(converted) is not type(value):
        return False
    if isinstance(value, list | tuple):
        return all(_alike(one, other) for one, other in zip(converted, value, strict=True))
    if isinstance(value, dict):
        return all(_alike(converted[key], item) for key, item in value.items())
    return bool(converted == value)
