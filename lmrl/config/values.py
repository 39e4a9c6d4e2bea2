"""From plain values (TOML's) to typed dataclasses; whatever does not fit is a ``SettingsError`` with its full path."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from lmrl.config.types import (
    MANY,
    NONE,
    TABLES,
    enum_text,
    expected_text,
    field_types,
    found_text,
    is_enum,
    is_section,
    not_holdable,
    quoted,
    unaliased,
    union_members,
    unknown_setting,
)
from lmrl.errors import SettingsError, nearest

Config = TypeVar("Config")
READER = "lmrl.config.reader"
"""Key of a field's metadata: ``reader(value or MISSING, where) -> value``, for fields with a form of their own."""


def build(cls: type[Config], mapping: Mapping[str, Any], where: str = "") -> Config:
    """Return an instance of the dataclass ``cls`` from a mapping of plain values.

    ``where`` is the dotted path of the mapping, for messages. Integers are taken for floats, booleans are not taken for
    numbers. Raises ``SettingsError`` for a key that is unknown, a value that is ill-typed, or a field that is missing.
    """
    if not isinstance(mapping, Mapping):
        raise SettingsError(f"{where or 'the configuration'} is {found_text(mapping)}; expected a table")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    kinds = field_types(cls)
    for key in mapping:
        if key not in fields:
            raise SettingsError(_unknown_key(where, str(key), fields, kinds))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        path = _join(where, name)
        reader = field.metadata.get(READER)
        if reader is not None:
            values[name] = reader(mapping.get(name, dataclasses.MISSING), path)
        elif name in mapping:
            values[name] = convert(kinds[name], mapping[name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{path} is missing and has no default; expected {expected_text(kinds[name])}")
    try:
        return cls(**values)
    except SettingsError as error:
        raise SettingsError(_located(where, error)) from error
    except (ValueError, TypeError) as error:  # a plugin's own checks in __post_init__
        raise SettingsError(_located(where, error)) from error


def convert(annotation: Any, value: Any, where: str) -> Any:
    """Return a value as the annotated type, or raise ``SettingsError``."""
    annotation = unaliased(annotation)
    if annotation is Any:
        return value
    members = union_members(annotation)
    if members is not None:
        return _convert_union(annotation, members, value, where)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _convert_literal(annotation, arguments, value, where)
    if is_enum(annotation):
        return _convert_enum(annotation, value, where)
    if is_section(annotation):
        return value if isinstance(value, annotation) else build(annotation, value, where)
    if origin is tuple or annotation is tuple:
        return _convert_tuple(annotation, arguments, value, where)
    if origin in MANY or annotation in MANY:
        items = _items(annotation, value, where)
        made = [convert(arguments[0] if arguments else Any, item, f"{where}[{i}]") for i, item in enumerate(items)]
        return tuple(made) if isinstance(value, tuple) and Sequence in (origin, annotation) else made
    if origin in TABLES or annotation in TABLES:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong(annotation, value, where)
        inner = arguments[1] if arguments else Any
        return {key: convert(inner, item, _join(where, key)) for key, item in value.items()}
    return _convert_scalar(annotation, value, where)


def _convert_scalar(annotation: Any, value: Any, where: str) -> Any:
    if annotation is type(None):
        if value is None:
            return None
    elif annotation is bool:
        if isinstance(value, bool):
            return value
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError as error:
                raise SettingsError(f"{where} is an integer that is too large for a float") from error
            if not math.isnan(number):  # it would pass every comparison of a setting's own checks
                return number
    elif annotation is str:
        if isinstance(value, str):
            return value
    elif annotation is Path:
        if isinstance(value, str | Path):
            return Path(value)
    else:
        raise SettingsError(not_holdable(annotation, where))
    raise _wrong(annotation, value, where)


def _convert_union(annotation: Any, members: tuple[Any, ...], value: Any, where: str) -> Any:
    possible = [member for member in members if member is not type(None)]
    words = [member for member in possible if get_origin(member) is Literal or is_enum(member)]
    if isinstance(value, str) and value.lower() == NONE and len(possible) < len(members):
        for member in words:  # one of them may be the word itself
            with suppress(SettingsError):
                return convert(member, value, where)
        return None
    if len(possible) == 1 and value is not None:
        return convert(possible[0], value, where)
    # A value that already has one member's exact type keeps it: 1 is an int in `float | int`.
    exact = [member for member in members if member is type(value)]
    for member in words + exact + list(members):
        try:
            return convert(member, value, where)
        except SettingsError:
            continue
    raise _wrong(annotation, value, where)


def _convert_enum(annotation: Any, value: Any, where: str) -> Any:
    """Return the member with this text, name or value; a boolean is no number here either."""
    if isinstance(value, annotation):
        return value
    for member in annotation.__members__.values():
        if type(value) is type(member.value) and value == member.value:
            return member
    if isinstance(value, str) and value in annotation.__members__:
        return annotation.__members__[value]
    texts = [enum_text(member) for member in annotation]
    guess = nearest(value, texts) if isinstance(value, str) else ""
    question = f"; did you mean {quoted(guess)}?" if guess else ""
    raise SettingsError(f"{where} is {found_text(value)}; expected {expected_text(annotation)}{question}")


def _convert_literal(annotation: Any, options: tuple[Any, ...], value: Any, where: str) -> Any:
    for option in options:
        if type(option) is type(value) and option == value:
            return option
    guess = nearest(value, [option for option in options if isinstance(option, str)]) if isinstance(value, str) else ""
    question = f"; did you mean {quoted(guess)}?" if guess else ""
    raise SettingsError(f"{where} is {found_text(value)}; expected {expected_text(annotation)}{question}")


def _convert_tuple(annotation: Any, arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    items = _items(annotation, value, where)
    if not arguments:
        return tuple(items)
    if arguments[-1] is ...:
        arguments = (arguments[0],) * len(items)
    if len(items) != len(arguments):
        raise _wrong(annotation, value, where)
    pairs = enumerate(zip(arguments, items, strict=True))
    return tuple(convert(argument, item, f"{where}[{i}]") for i, (argument, item) in pairs)


def _items(annotation: Any, value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(annotation, value, where)
    return list(value)


def _wrong(annotation: Any, value: Any, where: str) -> SettingsError:
    hint = ""
    if isinstance(value, str):
        if annotation in (int, float) and _is_number(value):
            hint = f"; write {value.strip()} without quotes"
        elif annotation is bool and value.lower() in ("true", "false"):
            hint = f"; write {value.lower()}, in small letters and without quotes"
        elif get_origin(annotation) in MANY:
            hint = f"; write [{quoted(value)}]"
    elif annotation in (str, Path) and not isinstance(value, Mapping | list | tuple | type(None)):
        hint = f'; write it in quotes, "{quoted(value)}" (in a shell \'"{quoted(value)}"\')'
    return SettingsError(f"{where} is {found_text(value)}; expected {expected_text(annotation)}{hint}")


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _unknown_key(where: str, key: str, fields: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    """Say what is unknown, what is known, and in which subsection a setting of this name does stand."""
    inside = [
        _join(_join(where, name), key)
        for name, kind in kinds.items()
        if is_section(kind) and any(field.name == key for field in dataclasses.fields(kind)) and key != "name"
    ]
    return unknown_setting(where, key, fields, f"There is {' and '.join(inside)}." if inside else "")


def _located(where: str, error: Exception) -> str:
    """Return the error's message, with the section's path in front unless the message names it."""
    text = str(error)
    return text if not where or f"{where}." in text or text.startswith(where) else f"{where}: {text}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
