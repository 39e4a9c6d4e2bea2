"""Each type of setting works in TOML, on the command line, in help and in the resolved TOML; others are refused."""

from __future__ import annotations

import enum
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NewType, Optional

import pytest

from lmrl.config import apply_overrides, build, describe, to_toml
from lmrl.config.defaults import check_defaults
from lmrl.errors import SettingsError

Steps = NewType("Steps", int)


class Mode(enum.StrEnum):
    FAST = "fast"
    VERY_SLOW = "very-slow"
    NONE = "none"


class Color(enum.Enum):
    RED = 1
    BLUE = 2
    CRIMSON = 1  # an alias of RED


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Inner:
    rate: float = 1
    mode: Mode = Mode.FAST


@dataclass
class Everything:
    """Every type that a setting may have."""

    on: bool = False
    mode: Mode = Mode.FAST
    """How fast."""
    color: Color = Color.RED
    level: Level = Level.LOW
    literal: Literal["a", "none", 3] = "a"
    maybe: int | None = 3
    maybe_text: Optional[str] = "x"  # noqa: UP045
    maybe_path: Path | None = None
    maybe_mode: Mode | None = Mode.FAST
    maybe_color: Color | None = Color.BLUE
    maybe_literal: Literal["a", "b"] | None = "a"
    maybe_inner: Inner | None = None
    file: Path = Path("a/b")
    pair: tuple[int, float] = (1, 2)
    many: tuple[Mode, ...] = (Mode.FAST,)
    steps: Steps = Steps(3)
    modes: list[Mode] = field(default_factory=lambda: [Mode.FAST])
    numbers: list[int | None] = field(default_factory=list)
    names: Sequence[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    by_mode: Mapping[str, Mode] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    parts: list[Inner] = field(default_factory=lambda: [Inner()])
    either: float | str = 0.5
    free: Any = None


CASES = [
    ("on=true", "on", True),
    ("mode=very-slow", "mode", Mode.VERY_SLOW),
    ("mode=VERY_SLOW", "mode", Mode.VERY_SLOW),
    ("mode=none", "mode", Mode.NONE),
    ("color=BLUE", "color", Color.BLUE),
    ("color=2", "color", Color.BLUE),
    ("color=CRIMSON", "color", Color.RED),
    ("level=2", "level", Level.HIGH),
    ("level=HIGH", "level", Level.HIGH),
    ("literal=none", "literal", "none"),
    ("literal=3", "literal", 3),
    ("maybe=none", "maybe", None),
    ("maybe=None", "maybe", None),
    ("maybe=4", "maybe", 4),
    ("maybe_text=none", "maybe_text", None),
    ("maybe_text=some", "maybe_text", "some"),
    ("maybe_path=none", "maybe_path", None),
    ("maybe_path=x/y.txt", "maybe_path", Path("x/y.txt")),
    ("maybe_mode=none", "maybe_mode", Mode.NONE),
    ("maybe_mode=fast", "maybe_mode", Mode.FAST),
    ("maybe_color=none", "maybe_color", None),
    ("maybe_color=RED", "maybe_color", Color.RED),
    ("maybe_literal=none", "maybe_literal", None),
    ("maybe_inner=none", "maybe_inner", None),
    ("maybe_inner.rate=2", "maybe_inner", Inner(2.0)),
    ("file=c.txt", "file", Path("c.txt")),
    ("pair=[3, 4]", "pair", (3, 4.0)),
    ('many=["fast", "none"]', "many", (Mode.FAST, Mode.NONE)),
    ("steps=5", "steps", 5),
    ('modes=["very-slow"]', "modes", [Mode.VERY_SLOW]),
    ('names=["a"]', "names", ["a"]),
    ("weights.a=1", "weights", {"a": 1.0}),
    ("by_mode.x=fast", "by_mode", {"x": Mode.FAST}),
    ("inner.mode=none", "inner", Inner(1, Mode.NONE)),
    ("parts=[{rate = 3}]", "parts", [Inner(3.0)]),
    ("either=word", "either", "word"),
    ("free=none", "free", "none"),
]


@pytest.mark.parametrize(("override", "name", "value"), CASES, ids=[override for override, _, _ in CASES])
def test_a_value_from_the_command_line_survives_the_resolved_toml(override, name, value):
    built = build(Everything, apply_overrides({}, [override]))
    assert getattr(built, name) == value and type(getattr(built, name)) is type(value)
    again = build(Everything, tomllib.loads(to_toml(built)))
    assert again == built
    assert type(getattr(again, name)) is type(value)


def test_every_field_is_tested_and_described():
    assert {name for _, name, _ in CASES} | {"numbers"} == set(Everything.__dataclass_fields__)
    shown = {one.name: (one.type, one.default) for one in describe(Everything)}
    assert shown["mode"] == ('"fast" | "very-slow" | "none"', '"fast"')
    assert shown["color"] == ('"RED" | "BLUE"', '"RED"')
    assert shown["maybe"] == ("int | none", "3") and shown["maybe_path"] == ("path | none", "none")
    assert shown["modes"] == ('list["fast" | "very-slow" | "none"]', '["fast"]')
    assert shown["many"][1] == '["fast"]' and shown["steps"] == ("int", "3")
    check_defaults(Everything)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "mode=slow",
            r'mode is "slow" .*; expected one of "fast", "very-slow", "none"; did you mean "very-slow"',
        ),
        ("mode=1", r'mode is 1 \(an integer\); expected one of "fast"'),
        ("color=GREEN", r'color is "GREEN" \(a string\); expected one of "RED", "BLUE"'),
        ("level=true", r"level is true \(a boolean\)"),
        ("maybe=nothing", r'maybe is "nothing" \(a string\); expected an integer'),
        ("maybe=nan", r"maybe is nan"),
        ("on=none", r'on is "none" \(a string\); expected true or false'),
        ('many=["slow"]', r'many\[0\] is "slow"'),
        ("inner.mode=slow", r'inner.mode is "slow"'),
    ],
)
def test_a_value_outside_is_refused_with_what_is_possible(override, message):
    with pytest.raises(SettingsError, match=message):
        build(Everything, apply_overrides({}, [override]))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement is part of Python 3.12 and later")
def test_an_alias_made_by_the_type_statement_is_its_type():
    space: dict[str, Any] = {"dataclass": dataclass, "__name__": __name__}
    text = "type Size = int | None\n@dataclass\nclass Aliased:\n    size: Size = 3\n    sizes: tuple[Size, ...] = ()"
    # Not with this file's postponed annotations, which would be looked up in this file.
    exec(compile(text, "<settings>", "exec", dont_inherit=True), space)
    check_defaults(space["Aliased"])
    assert build(space["Aliased"], {"size": "none", "sizes": [1, "none"]}).sizes == (1, None)


def settings(annotation, *default, **more):
    """Return a dataclass with one field."""
    made = type("Settings", (), {"__annotations__": {"x": annotation}, "__module__": __name__, **more})
    if default:
        made.x = default[0]
    return dataclass(made)


WRONG = [
    (int, "3", r'the default of x is "3" \(a string\); expected an integer'),
    (int, True, "the default of x is true"),
    (int, 1.0, "the default of x is 1.0"),
    (int, None, r"the default of x is None \(nothing\); expected an integer"),
    (float, "1e-4", r'the default of x is "1e-4"'),
    (bool, 0, "the default of x is 0"),
    (str, 3, "the default of x is 3"),
    (Path, "a", r'the default of x is "a" \(a string\); expected a path'),
    (Path | None, "a", "the default of x"),
    (str, Path("a"), "the default of x"),
    (Literal["a", "b"], "c", r'the default of x is "c" \(a string\); expected one of "a", "b"'),
    (Literal["a", "b"] | None, "c", "the default of x"),
    (Literal[1, 2], True, "the default of x is true"),
    (Mode, "fast", r'the default of x is "fast"'),
    (Mode, Color.RED, "the default of x"),
    (Color, 1, "the default of x is 1"),
    (int | None, "none", "the default of x"),
    (tuple[int, int], (1, 2, 3), "a list of 2 values"),
    (tuple[int, ...], (1, "2"), r"the default of x\[1\]"),
    (tuple[Path, ...], ("a",), "the default of x"),
    (list[str], field(default_factory=lambda: ["a", 1]), r"the default of x\[1\] is 1"),
    (list[str], field(default_factory=tuple), "the default of x"),
    (list[Mode], field(default_factory=lambda: ["fast"]), "the default of x"),
    (tuple[int, ...], field(default_factory=list), "the default of x"),
    (dict[str, int], field(default_factory=lambda: {"a": "b"}), "the default of x.a"),
    (dict[str, int], field(default_factory=lambda: {1: 1}), "the default of x"),
    (Inner, field(default_factory=lambda: Inner("fast")), r'the default of x.rate is "fast"'),
    (Inner, field(default_factory=dict), "the default of x"),
    (list[Inner], field(default_factory=lambda: [Inner(mode="fast")]), "the default of x"),
    (int, field(default_factory=lambda: 1 / 0), "the default of x cannot be made: ZeroDivisionError"),
    (settings(int, "3"), field(default_factory=lambda: None), r"the default of x.x is \"3\""),
]


@pytest.mark.parametrize(("annotation", "default", "message"), WRONG, ids=[str(one[:2])[:60] for one in WRONG])
def test_a_default_of_another_type_is_refused(annotation, default, message):
    with pytest.raises(SettingsError, match=message):
        check_defaults(settings(annotation, default))


@pytest.mark.parametrize(
    "annotation", [set[int], object, bytes, Rights, dict[int, str], complex, list[set[int]], Everything | bytes]
)
def test_a_type_that_toml_cannot_hold_is_refused(annotation):
    with pytest.raises(SettingsError, match=r"x is declared as .*, which a configuration cannot hold; expected"):
        check_defaults(settings(annotation))


def test_a_sequence_may_have_a_tuple_as_its_default():
    check_defaults(settings(Sequence[str], ("a",)))
    check_defaults(settings(Sequence[str] | None, ()))


def test_an_annotation_that_cannot_be_read_is_refused():
    with pytest.raises(SettingsError, match=r"annotations of .*Settings cannot be read: NameError"):
        check_defaults(settings("NoSuchType"))
