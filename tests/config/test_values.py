"""Typed construction: what fits is built, what does not is refused with its path, its value and what was expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from lmrl.config import build
from lmrl.errors import SettingsError


@dataclass
class Inner:
    rate: float = 0.5
    steps: int = 3
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; expected 0 or more")


@dataclass
class Outer:
    name: str = "x"
    on: bool = False
    file: Path = Path("a")
    maybe: Optional[int] = None  # noqa: UP045
    either: int | str = 0
    names: list[str] = field(default_factory=list)
    pair: tuple[int, float] = (1, 2.0)
    sizes: tuple[int, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    parts: list[Inner] = field(default_factory=list)
    level: Literal[1, 2] = 1
    extra: Any = None
    inner: Inner = field(default_factory=Inner)


@dataclass
class Needy:
    size: int
    made: int = field(default=0, init=False)


def test_everything_is_built():
    built = build(
        Outer,
        {
            "name": "y",
            "on": True,
            "file": "b/c",
            "maybe": 4,
            "either": "5",
            "names": ["p"],
            "pair": [1, 2],
            "sizes": [1, 2, 3],
            "weights": {"a": 1},
            "parts": [{"rate": 1}, {}],
            "level": 2,
            "extra": {"k": [1]},
            "inner": {"rate": 1e-5, "mode": "slow"},
        },
    )
    expected = Outer(
        "y", True, Path("b/c"), 4, "5", ["p"], (1, 2.0), (1, 2, 3), {"a": 1.0}, [Inner(1.0), Inner()], 2, {"k": [1]}
    )
    expected.inner = Inner(1e-5, 3, "slow")
    assert built == expected
    assert type(built.parts[0].rate) is float and type(built.pair) is tuple and type(built.weights["a"]) is float
    assert build(Outer, {}) == Outer() and build(Outer, {"inner": Inner(steps=9)}).inner.steps == 9


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"inner": {"rat": 1}},
            r"unknown setting 'inner.rat'; did you mean 'inner.rate'\? Known in \[inner\]: mode",
        ),
        ({"nam": 1}, r"unknown setting 'nam'; did you mean 'name'\? Known: either, extra"),
        ({"rate": 1}, r"unknown setting 'rate'.* There is inner.rate\."),
        ({"inner": {"rate": True}}, r"inner.rate is true \(a boolean\); expected a number"),
        (
            {"inner": {"rate": "1e-5"}},
            r'inner.rate is "1e-5" .*; expected a number; write 1e-5 without quotes',
        ),
        ({"inner": {"rate": float("nan")}}, r"inner.rate is nan \(a float\); expected a number"),
        ({"inner": {"rate": 10**400}}, "inner.rate is an integer that is too large"),
        ({"inner": {"steps": 2.0}}, r"inner.steps is 2.0 \(a float\); expected an integer"),
        ({"inner": {"steps": True}}, r"inner.steps is true \(a boolean\); expected an integer"),
        ({"inner": {"steps": -1}}, r"inner: steps is -1; expected 0 or more"),
        (
            {"inner": {"mode": "fest"}},
            r'inner.mode is "fest" .*; expected one of "fast", "slow"; did you mean "f',
        ),
        ({"inner": 3}, r"inner is 3 \(an integer\); expected a table"),
        ({"level": True}, r"level is true \(a boolean\); expected one of 1, 2"),
        ({"on": 1}, r"on is 1 \(an integer\); expected true or false"),
        ({"on": "True"}, r"on is \"True\" .*; write true, in small letters"),
        ({"name": 5}, r"name is 5 \(an integer\); expected a string; write it in quotes, \"5\""),
        ({"maybe": "no"}, r"maybe is \"no\" \(a string\); expected an integer"),
        ({"either": 1.5}, r"either is 1.5 \(a float\); expected an integer or a string"),
        ({"names": "p"}, r"names is \"p\" \(a string\); expected a list, list\[str\]; write \[\"p\"\]"),
        ({"names": ["p", 3]}, r"names\[1\] is 3 \(an integer\); expected a string"),
        ({"pair": [1]}, r"pair is \[1\] \(a list\); expected a list of 2 values"),
        ({"sizes": [1, "2"]}, r"sizes\[1\] is \"2\""),
        ({"weights": [1]}, r"weights is \[1\] \(a list\); expected a table"),
        ({"weights": {"a": "b"}}, r"weights.a is \"b\" \(a string\); expected a number"),
        ({"parts": [{}, {"mod": 1}]}, r"unknown setting 'parts\[1\].mod'; did you mean 'parts\[1\].mode'"),
        (3, r"the configuration is 3 \(an integer\); expected a table"),
    ],
)
def test_what_does_not_fit_is_refused(mapping, message):
    with pytest.raises(SettingsError, match=message):
        build(Outer, mapping)


def test_paths_start_at_where():
    with pytest.raises(SettingsError, match=r"'reward.x.rat'; did you mean 'reward.x.rate'"):
        build(Inner, {"rat": 1}, "reward.x")


def test_missing_and_computed_fields():
    with pytest.raises(SettingsError, match=r"needy\.size is missing and has no default; expected an integer"):
        build(Needy, {}, "needy")
    with pytest.raises(SettingsError, match="unknown setting 'made'"):
        build(Needy, {"size": 1, "made": 2})


def test_a_type_that_no_file_can_hold_is_named():
    @dataclass
    class Odd:
        value: complex = 0j

    with pytest.raises(SettingsError, match=r"declared as <class 'complex'>, which a configuration cannot hold"):
        build(Odd, {"value": 1})
