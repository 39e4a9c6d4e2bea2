"""Help on settings: the string that stands below a dataclass's field in its source is the field's description."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from lmrl.config.choices import PluginChoice
from lmrl.config.types import NONE, field_types, quoted, type_text

REQUIRED = "required"


@dataclass(frozen=True)
class FieldHelp:
    """One setting: its name, its type and default as text, and its description."""

    name: str
    type: str
    default: str
    help: str


def describe(cls: type) -> list[FieldHelp]:
    """Return the help on every field of a dataclass, inherited ones included, in the order of the fields."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):  # a subclass's own description wins; without one it keeps its parent's
        if dataclasses.is_dataclass(base):
            texts.update(field_docstrings(base))
    kinds = field_types(cls)
    return [
        FieldHelp(field.name, type_text(kinds[field.name]), default_text(field), texts.get(field.name, ""))
        for field in dataclasses.fields(cls)
        if field.init
    ]


def field_docstrings(cls: type) -> dict[str, str]:
    """Return the descriptions that stand in the class's own body; none where the source is not at hand."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # made in an interactive session or by make_dataclass
        return {}
    body = tree.body[0]
    if not isinstance(body, ast.ClassDef):
        return {}
    found: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = following.value.value
            if isinstance(text, str):
                found[statement.target.id] = " ".join(text.split())
    return found


def default_text(field: dataclasses.Field[Any]) -> str:
    """Return a field's default as TOML would write it."""
    value = default_of(field)
    if value is dataclasses.MISSING:
        return REQUIRED
    if isinstance(value, PluginChoice):
        return f"name = {quoted(value.name)}" if value.name else ""
    if value is None:
        return NONE
    if dataclasses.is_dataclass(value):
        return "its own defaults"
    if isinstance(value, list | tuple):
        return f"[{', '.join(quoted(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {quoted(item)}" for key, item in value.items()) + "}"
    return quoted(value)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return a field's default value, or ``dataclasses.MISSING``."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
