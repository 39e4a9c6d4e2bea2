"""One-off plugins from files, which were asked for by name and so must load."""

from __future__ import annotations

import dataclasses

import pytest

from lmrl.config import describe
from lmrl.errors import PluginError
from lmrl.plugins import PluginManager

GOOD = '''
from __future__ import annotations
from dataclasses import dataclass
from lmrl import hookimpl
from lmrl.specs import RewardSpec

@dataclass
class Settings:
    size: int = 1
    """How big."""

@hookimpl
def lmrl_rewards():
    yield RewardSpec("from_file", len, Settings)
'''


def test_a_file_is_a_plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    manager = PluginManager([path, str(path)], entry_points=[])
    (found,) = [one for one in manager.listing() if one.name == "mine"]
    assert found.source == f"file {path}" and found.offers == {"reward": ("from_file",)}
    settings = manager.get("reward", "from_file").settings
    assert dataclasses.is_dataclass(settings) and describe(settings)[0].help == "How big."


def test_files_of_one_name_do_not_collide(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(GOOD.replace("from_file", folder))
    manager = PluginManager([tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"], entry_points=[])
    assert {"a", "b"} <= set(manager.rewards())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def broken(:\n", r"SyntaxError: .*mine\.py:1\)"),
        ("x = 1\nimport no_such_module_anywhere\n", r"ModuleNotFoundError: .*mine\.py:2\)"),
        (GOOD.replace("lmrl_rewards", "lmrl_reward"), "did you mean 'lmrl_rewards'"),
        (GOOD.replace("RewardSpec(", "tuple("), r"TypeError: tuple expected"),
    ],
)
def test_a_broken_file_is_an_error(source, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(PluginError, match=message) as caught:
        PluginManager([path], entry_points=[])
    assert str(path) in str(caught.value)
    listing = PluginManager([path], entry_points=[], strict=False).listing()
    assert listing[-1].status == "failed"


def test_a_missing_file_a_folder_and_another_suffix_are_errors(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    for name, message in (("no.py", "does not exist"), (".", "is a folder"), ("mine.txt", "does not end in .py")):
        with pytest.raises(PluginError, match=message):
            PluginManager([tmp_path / name], entry_points=[])
