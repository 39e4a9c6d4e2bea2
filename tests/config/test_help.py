"""Descriptions are read from the strings below a dataclass's fields."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Literal

from lmrl.algorithms.optimizer import OptimizerSettings
from lmrl.config import FieldHelp, PluginChoice, choice, describe


@dataclass
class Base:
    size: int = 3
    """How big,
    in pixels."""
    name: str = "a"
    """What it is called."""
    secret: float = 0.5


@dataclass
class Derived(Base):
    name: str = "b"
    size: int = 4
    """How big it is here."""
    mode: Literal["x", "y"] = "x"
    """Which one."""
    path: Path | None = None
    names: list[str] = field(default_factory=lambda: ["p"])
    must: dict[str, float] = field(kw_only=True)
    reward: PluginChoice = choice("reward", "length")


def test_help_is_complete_and_inherited():
    assert describe(Derived) == [
        FieldHelp("size", "int", "4", "How big it is here."),
        FieldHelp("name", "str", '"b"', "What it is called."),
        FieldHelp("secret", "float", "0.5", ""),
        FieldHelp("mode", '"x" | "y"', '"x"', "Which one."),
        FieldHelp("path", "path | none", "none", ""),
        FieldHelp("names", "list[str]", '["p"]', ""),
        FieldHelp("must", "table[float]", "required", ""),
        FieldHelp("reward", "table", 'name = "length"', ""),
    ]


def test_classes_without_source_have_no_descriptions():
    assert describe(make_dataclass("Made", [("size", int, 1)])) == [FieldHelp("size", "int", "1", "")]


def test_every_setting_that_ships_is_described():
    from lmrl.plugins import PluginManager
    from lmrl.stages.rl import config as rl_config

    manager = PluginManager()
    kinds = ("optimizer", "reward", "engine", "dataset")
    classes = [spec.settings for kind in kinds for spec in manager.records(kind).values()]
    classes += [OptimizerSettings, rl_config.TrainSettings, rl_config.SamplingSettings, rl_config.KLSettings]
    missing = [f"{cls.__name__}.{text.name}" for cls in classes for text in describe(cls) if not text.help]
    assert not missing
