"""One-off plugins from files, which were asked for by name and so must load."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from lmrl.config import describe
from lmrl.errors import PluginError
from lmrl.plugins import PluginManager

GOOD = '''
from __future__ import annotations
from dataclasses import dataclass
from lmrl import hookimpl
from lmrl.plugins.specs import RewardSpec

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


NEIGHBOURS = {
    "plugin.py": """
from dataclasses import dataclass
import json
import helper
from helper import LENGTH
from kit.words import Words
import kit.numbers as numbers
from kit import numbers as again
from lmrl import RewardSpec, hookimpl

@dataclass
class Settings(helper.Base):
    more: int = LENGTH

class Score:
    def __init__(self, settings):
        self.settings = settings

    def __call__(self, prompts, responses):
        import late  # a neighbour that is imported when it is needed
        assert json.dumps([1]) == "[1]" and again is numbers
        return [float(late.VALUE + self.settings.more + numbers.ONE + Words.two) for _ in responses]

@hookimpl
def lmrl_rewards():
    yield RewardSpec("PLACE", Score, Settings, concurrency="process")
""",
    "helper.py": """
from dataclasses import dataclass
import deeper
LENGTH = deeper.LENGTH

@dataclass
class Base:
    size: int = 1
""",
    "deeper.py": "LENGTH = NUMBER\n",
    "late.py": "VALUE = 1000\n",
    "kit/__init__.py": "from kit.words import Words\n",
    "kit/words.py": "import late\nfrom . import numbers\nclass Words:\n    two = 2 * numbers.ONE + late.VALUE\n",
    "kit/numbers.py": "ONE = 1\n",
    "json.py": "raise RuntimeError('a neighbour shadows the standard library')\n",
    "pluggy.py": "raise RuntimeError('a neighbour shadows an installed package')\n",
}


@pytest.fixture
def places(tmp_path):
    """Two folders with neighbours of the same names and different content."""
    for place, number in (("north", "10"), ("south", "20")):
        for name, text in NEIGHBOURS.items():
            file = tmp_path / place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("PLACE", place).replace("NUMBER", number), encoding="utf-8")
    return tmp_path


def test_a_file_imports_its_neighbours_and_shadows_nothing(places):
    path, modules = list(sys.path), set(sys.modules)
    manager = PluginManager([places / "north" / "plugin.py", places / "south" / "plugin.py"], entry_points=[])
    for place, number in (("north", 10), ("south", 20)):
        spec = manager.get("reward", place)
        assert spec.settings().more == number
        assert spec.build(spec.settings())(["p"], ["r"]) == [1000 + number + 1 + 1002]
    assert sys.path == path and not {"helper", "deeper", "late", "kit"} & (set(sys.modules) - modules)
    assert "__pycache__" not in {file.name for file in (places / "north").iterdir()}


def test_what_files_define_unpickles_in_another_process(places):
    manager = PluginManager([places / "north" / "plugin.py", places / "south" / "plugin.py"], entry_points=[])
    found = [manager.get("reward", place) for place in ("north", "south")]
    objects = [spec.build(spec.settings(size=5)) for spec in found]
    code = "import pickle, sys; print([o([''], ['']) for o in pickle.load(sys.stdin.buffer)])"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(objects), capture_output=True, check=False)
    assert done.stdout.decode().strip() == "[[2013.0], [2023.0]]", done.stderr.decode()


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_every_way_to_start_a_process_finds_them(method, places):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot start processes by {method}")
    score = PluginManager([places / "south" / "plugin.py"], entry_points=[]).get("reward", "south")
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(score.build(score.settings()), ["p"], ["r"]).result() == [2023.0]


def test_an_edited_file_and_an_edited_neighbour_are_read_again(places):
    file = places / "north" / "plugin.py"
    first = PluginManager([file], entry_points=[]).get("reward", "north")
    again = PluginManager([file], entry_points=[]).get("reward", "north")
    assert again.settings is first.settings, "nothing has changed, so objects of both managers pickle"
    (places / "north" / "deeper.py").write_text("LENGTH = 11\n")
    assert PluginManager([file], entry_points=[]).get("reward", "north").settings().more == 11
    file.write_text(file.read_text().replace("= LENGTH", "= 12"))
    assert PluginManager([file], entry_points=[]).get("reward", "north").settings().more == 12


def test_one_file_under_two_paths_is_one_plugin(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    manager = PluginManager(["mine.py", "./mine.py", tmp_path / "mine.py"], entry_points=[])
    assert manager.get("reward", "from_file") and manager.files == (tmp_path / "mine.py",)


def test_a_name_that_no_file_has_is_no_module():
    for name in ("nothing", "no_such", "x_mfrgg", "x_!!"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"lmrl.plugins.files.{name}")
