"""Every setting of every stage and of every plugin that ships is read somewhere."""

from __future__ import annotations

import ast
import dataclasses
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from lmrl.cli.recipes import STAGE_CONFIGS
from lmrl.config.types import field_types
from lmrl.plugins import PluginManager

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("optimizer", "engine", "reward", "dataset", "prompt_sampler")
NOT_A_USE = {"unread", "unread_sections", "__post_init__"}
"""Methods of settings that check or declare a setting, which is no use of it."""


def sections(cls):
    """Yield a configuration's dataclasses, those in tables included."""
    yield cls
    for annotation in field_types(cls).values():
        for one in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(one, type) and dataclasses.is_dataclass(one):
                yield from sections(one)


def uses():
    """Count the names that are read as attributes, or named in strings, outside of declarations and checks."""
    found = Counter()
    for path in [*(ROOT / "lmrl").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            found.update(names_in(node))
    return found


def names_in(node):
    if isinstance(node, ast.FunctionDef) and node.name in NOT_A_USE:
        return
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield node.attr
    elif isinstance(node, ast.Dict):
        yield from (key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    for child in ast.iter_child_nodes(node):
        yield from names_in(child)


@pytest.fixture(scope="module")
def used():
    return uses()


@pytest.fixture(scope="module")
def settings():
    manager = PluginManager()
    manager.commands()
    found = {}
    for stage, name in STAGE_CONFIGS.items():
        module, _, cls = name.partition(":")
        for section in sections(getattr(import_module(module), cls)):
            found.setdefault(section, stage)
    for kind in KINDS:
        for name, record in manager.records(kind).items():
            if dataclasses.is_dataclass(record.settings):
                for section in sections(record.settings):
                    found.setdefault(section, f"{kind} {name}")
    return found


def test_every_setting_is_read(settings, used):
    assert len(settings) > 40
    dead = [
        f"{where}: {cls.__name__}.{field.name}"
        for cls, where in settings.items()
        for field in dataclasses.fields(cls)
        if not used[field.name]
    ]
    assert not dead, f"settings that nothing reads: {', '.join(dead)}"


def test_the_check_finds_a_setting_that_is_only_declared():
    source = (
        "class A:\n    x: int = 0\n    def __post_init__(self):\n        self.x + 1\n    def use(self):\n        self.y"
    )
    assert set(names_in(ast.parse(source))) == {"y"}
