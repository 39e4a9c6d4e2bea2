"""Names of types and values in messages and in help: TOML's words rather than Python's."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lmrl.errors import SettingsError, nearest

MANY = (list, Sequence, tuple)
TABLES = (dict, Mapping)
NONE = "none"
"""The word for no value in an optional setting, in TOML and on the command line."""


def field_types(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass's fields."""
    try:
        hints = get_type_hints(cls)
    except Exception as error:  # whatever evaluating somebody's annotations raises
        raise SettingsError(
            f"the annotations of {cls.__module__}.{cls.__qualname__} cannot be read: {type(error).__name__}: {error}"
        ) from error
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def unaliased(annotation: Any) -> Any:
    """Return the type that a ``NewType`` or an alias made by the ``type`` statement stands for."""
    while True:
        target = getattr(annotation, "__supertype__", getattr(annotation, "__value__", None))
        if target is None or isinstance(annotation, enum.Enum):
            return annotation
        annotation = target


def is_enum(annotation: Any) -> bool:
    """Return True if the annotation is an enumeration, which is written as one of several words or numbers."""
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum) and not issubclass(annotation, enum.Flag)


def enum_text(member: enum.Enum) -> str:
    """Return what stands for a member in TOML: its value if that is text, else its name."""
    return str(member.value) if isinstance(member.value, str) else member.name


def union_members(annotation: Any) -> tuple[Any, ...] | None:
    """Return the members of ``X | Y`` or ``Optional[X]``, or None for any other annotation."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else None


def is_section(annotation: Any) -> bool:
    """Return whether the annotation is a dataclass, which is a table in TOML."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def unknown_setting(where: str, name: str, known: Iterable[str], advice: str = "") -> str:
    """Return the message for a name that a section does not have: its full path, the nearest name, all names."""
    prefix = f"{where}." if where else ""
    names = sorted(known)
    # Compared without the path, which would make every two names look alike.
    guess = nearest(name, names)
    question = f"; did you mean '{prefix}{guess}'?" if guess else "."
    section = f" in [{where}]" if where else ""
    listing = f" Known{section}: {', '.join(names)}." if names else f" Nothing can be set{section}."
    return f"unknown setting '{prefix}{name}'{question}{listing}" + (f" {advice}" if advice else "")


def type_text(annotation: Any) -> str:
    """Return a type as help shows it: ``int``, ``"a" | "b"``, ``list[str]``."""
    annotation = unaliased(annotation)
    if annotation is type(None):
        return NONE
    if is_enum(annotation):
        return " | ".join(quoted(member) for member in annotation)
    if annotation is Any or annotation is dataclasses.MISSING:
        return "any"
    members = union_members(annotation)
    if members is not None:
        return " | ".join(type_text(member) for member in sorted(members, key=lambda one: one is type(None)))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(quoted(value) for value in arguments)
    if origin in MANY or annotation in MANY:
        inner = [type_text(argument) if argument is not ... else "..." for argument in arguments]
        return f"list[{', '.join(inner)}]" if inner else "list"
    if origin in TABLES or annotation in TABLES:
        return f"table[{type_text(arguments[1])}]" if arguments else "table"
    if is_section(annotation):
        return "table"
    if annotation is Path:
        return "path"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def expected_text(annotation: Any) -> str:
    """Return what a value of the type looks like, for error messages."""
    annotation = unaliased(annotation)
    words: dict[Any, str] = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a string",
        Path: "a path, as a string",
    }
    if isinstance(annotation, type) and annotation in words:
        return words[annotation]
    members = union_members(annotation)
    if members is not None:
        return " or ".join(NONE if member is type(None) else expected_text(member) for member in members)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal or is_enum(annotation):
        options = arguments or tuple(annotation)
        return ("one of " if len(options) > 1 else "") + ", ".join(quoted(value) for value in options)
    if origin is tuple and arguments and arguments[-1] is not ...:
        return f"a list of {len(arguments)} values, {type_text(annotation)}"
    if origin in MANY or annotation in MANY:
        return f"a list, {type_text(annotation)}" if arguments else "a list"
    if origin in TABLES or annotation in TABLES or is_section(annotation):
        return "a table"
    return type_text(annotation)


def not_holdable(annotation: Any, where: str) -> str:
    """Return the message for a setting of a type that a configuration cannot hold."""
    return (
        f"{where} is declared as {annotation!r}, which a configuration cannot hold; expected bool, int, float, str, "
        "Path, Literal, an Enum, list, tuple, dict[str, ...], a dataclass, or a union of these"
    )


def found_text(value: Any) -> str:
    """Return a value with its type, ``"x" (a string)``."""
    return f"{quoted(value)} ({_found_type(value)})"


def quoted(value: Any) -> str:
    """Return a value as TOML would write it, as far as a message needs it."""
    if isinstance(value, enum.Enum):
        value = enum_text(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value) if isinstance(value, Path) else repr(value)


def _found_type(value: Any) -> str:
    if isinstance(value, bool):  # before int, which it is a kind of
        return "a boolean"
    for kind, words in (
        (int, "an integer"),
        (float, "a float"),
        (str, "a string"),
        (Mapping, "a table"),
        ((list, tuple), "a list"),
        ((datetime.date, datetime.time), "a date or time"),
        (type(None), "nothing"),
    ):
        if isinstance(value, kind):
            return words
    return f"a {type(value).__name__}"
