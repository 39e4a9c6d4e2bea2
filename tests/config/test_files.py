"""TOML files, dotted overrides, and the way back to TOML."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.config import apply_overrides, build, read_toml, to_toml
from lmrl.errors import SettingsError


@dataclass
class Section:
    rate: float = 1e-4
    count: int | None = None
    mode: Literal["a", "b"] = "a"
    pair: tuple[int, str] = (1, "x")


@dataclass
class Whole:
    text: str = ""
    on: bool = True
    path: Path = Path("p")
    names: list[str] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    section: Section = field(default_factory=Section)
    sections: list[Section] = field(default_factory=list)
    tables: dict[str, Section] = field(default_factory=dict)


TEXT = st.text(st.characters(exclude_categories=("Cs",)))
FLOATS = st.floats(allow_nan=False)
SECTIONS = st.builds(
    Section, FLOATS, st.none() | st.integers(), st.sampled_from(["a", "b"]), st.tuples(st.integers(), TEXT)
)
PATHS = st.text("abc./-_ ", min_size=1).map(Path)
WHOLES = st.builds(
    Whole,
    TEXT,
    st.booleans(),
    PATHS,
    st.lists(TEXT),
    st.lists(st.integers()).map(tuple),
    st.dictionaries(TEXT, FLOATS),
    SECTIONS,
    st.lists(SECTIONS, max_size=3),
    st.dictionaries(TEXT, SECTIONS, max_size=3),
)


@given(WHOLES)
def test_what_is_written_reads_back_equal(whole):
    assert build(Whole, tomllib.loads(to_toml(whole))) == whole


def test_none_is_left_out_where_it_is_the_default_and_written_where_it_is_not():
    assert "count" not in to_toml(Section())

    @dataclass
    class Stubborn:
        size: int | None = 3
        text: str | None = "x"

    written = to_toml(Stubborn(None, None))
    assert written == 'size = "none"\ntext = "none"\n'
    assert build(Stubborn, tomllib.loads(written)) == Stubborn(None, None)
    with pytest.raises(SettingsError, match="text is the text 'None', which is read as no value"):
        to_toml(Stubborn(text="None"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = = 2\n", r"bad.toml, line 2, column 5: Invalid value"),
        (b"a = 1\na = 2\n", r"bad.toml, line 2, column \d+: Cannot overwrite a value"),
        (b"a = 1\nb = [1,\n", r"bad.toml, line 3"),
        (b"a = 1\nb = '\xff'\n", r"bad.toml, line 2: not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(content, message, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        read_toml(path)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(tmp_path / "recipe.toml") == {"a": 1}
    with pytest.raises(SettingsError, match=r"does not exist; did you mean .*recipe\.toml"):
        read_toml(tmp_path / "recipes.toml")
    with pytest.raises(SettingsError, match="is a folder"):
        read_toml(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1", 1),
        ("true", True),
        ("True", "True"),
        ('"7"', "7"),
        ("ppo", "ppo"),
        ("a=b", "a=b"),
        ("", ""),
        ("../data/model", "../data/model"),
        ('["x", "y"]', ["x", "y"]),
        ("{a = 1}", {"a": 1}),
        ("1\nother = 2", "1\nother = 2"),
        ("two words", "two words"),
    ],
)
def test_override_values(text, value):
    assert apply_overrides({}, [f"section.key={text}"]) == {"section": {"key": value}}


def test_overrides_leave_the_mapping_alone_and_later_ones_win():
    mapping = {"train": {"rate": 1, "list": [1]}, "model": "m"}
    result = apply_overrides(mapping, ["train.rate=2", "train.rate = 3", 'weights."a.b"=1', "new.deep.key=x"])
    assert result == {
        "train": {"rate": 3, "list": [1]},
        "model": "m",
        "weights": {"a.b": 1},
        "new": {"deep": {"key": "x"}},
    }
    assert mapping == {"train": {"rate": 1, "list": [1]}, "model": "m"}


@pytest.mark.parametrize("override", ["train.rate", "=3", "train..rate=3", ".rate=3", 'a."b=3', ""])
def test_malformed_overrides(override):
    with pytest.raises(SettingsError, match=r"malformed; expected section\.key=value"):
        apply_overrides({}, [override])


def test_nothing_can_be_set_below_a_scalar():
    with pytest.raises(SettingsError, match=r"below train.rate, which is 1 \(an integer\) and no table"):
        apply_overrides({"train": {"rate": 1}}, ["train.rate.x=2"])


def test_a_number_in_exponent_form_reaches_a_float_field():
    assert build(Section, apply_overrides({}, ["rate=1e-5"])).rate == 1e-5
