"""A run with plugin files records them and resumes with them, from any folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lmrl.cli.main import main
from lmrl.config import build, read_toml
from lmrl.errors import ResumeError
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.training.plugin_files import note_changed_files, resumed_files

REWARD = """
from dataclasses import dataclass
import words
from lmrl import RewardSpec, TrackerSpec, hookimpl

@dataclass
class Settings:
    word: str = words.WORD

class Counts:
    def __init__(self, settings):
        self.word = settings.word

    def __call__(self, prompts, responses):
        return [float(response.count(self.word)) for response in responses]

@hookimpl
def lmrl_rewards():
    yield RewardSpec("counts", Counts, Settings, concurrency="process")

@hookimpl
def lmrl_run_start(run):
    print("observed")
"""
SMALL = [
    "run.device=cpu",
    "sampling.max_new_tokens=4",
    "train.prompts_per_update=4",
    "optimizer.name=reinforce",
    "evaluation.prompts=2",
    "trackers=[]",
    "prompts.file.path=prompts.txt",
    "reward.name=counts",
]


@pytest.fixture
def project(tmp_path, tiny_folder, monkeypatch):
    """A folder with a plugin file, its neighbour and prompts, in which a run of two updates was begun."""
    here = tmp_path / "project"
    here.mkdir()
    (here / "mine.py").write_text(REWARD, encoding="utf-8")
    (here / "words.py").write_text("WORD = 'cat'\n", encoding="utf-8")
    (here / "prompts.txt").write_text("the cat\na dog\nthe dog sat\na cat ran\nthe\na\n", encoding="utf-8")
    monkeypatch.chdir(here)
    settings = [f"model={tiny_folder}", f"run.folder={here / 'run'}", "train.updates=2", *SMALL]
    settings = [one.replace("prompts.txt", str(here / "prompts.txt")) for one in settings]
    assert main(["rl", "--quiet", "--plugin", "mine.py", *settings]) == 0
    config = (here / "run" / "config.toml").read_text(encoding="utf-8")
    (here / "run" / "config.toml").write_text(config.replace("updates = 2", "updates = 3"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return here


def updates(project):
    return [record["update"] for record in read_metrics(project / "run")]


def resume(project, *options):
    return main(["rl", "--quiet", "--resume", str(project / "run"), *options])


def test_the_file_is_recorded_with_what_it_imported(project):
    [record] = json.loads((project / "run" / "versions.json").read_text())["plugin_files"]
    assert record["path"] == str(project / "mine.py") and len(record["sha256"]) == 64
    assert list(record["imports"]) == [str(project / "words.py")]


def test_a_run_resumes_without_naming_the_file_and_from_another_folder(project, capsys):
    assert resume(project) == 0
    said = capsys.readouterr()
    assert updates(project) == [0, 1, 2, 3] and said.out.count("observed") == 1 and "changed" not in said.err
    assert len(json.loads((project / "run" / "versions.json").read_text())["plugin_files"]) == 1


@pytest.mark.parametrize("form", ["--resume={}", "--resume {}"])
def test_naming_the_file_again_loads_it_once(form, project, capsys):
    words = form.format(project / "run").split(" ")
    assert main(["rl", "--quiet", *words, "--plugin", str(project / "mine.py")]) == 0
    assert capsys.readouterr().out.count("observed") == 1


def test_the_function_resumes_with_the_recorded_file_too(project):
    rl(build(RLConfig, read_toml(project / "run" / "config.toml")), resume=True, progress=False)
    assert updates(project) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["mine.py", "words.py"])
def test_a_changed_file_is_said(name, project, capsys):
    with (project / name).open("a") as file:
        file.write("\n# another thought\n")
    assert resume(project) == 0
    said = capsys.readouterr().err
    assert f"started with: {name} changed; the run continues with the file as it is now" in said
    assert f"the plugin file {project / 'mine.py'} is not what" in said


def test_a_missing_file_is_an_error_that_names_it(project, capsys):
    (project / "mine.py").rename(project / "elsewhere.txt")
    assert resume(project) == 2
    said = capsys.readouterr().err
    assert f"uses the plugin file {project / 'mine.py'}, which does not exist" in said
    assert "--plugin PATH/mine.py" in said and updates(project) == [0, 1, 2]


def test_a_missing_neighbour_is_an_error_that_names_it(project, capsys):
    (project / "words.py").unlink()
    assert resume(project) == 2
    said = capsys.readouterr().err
    assert "No module named 'words'" in said and str(project / "mine.py") in said


def test_a_moved_file_is_named_anew(project, tmp_path, capsys):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("mine.py", "words.py"):
        shutil.move(project / name, moved / name)
    assert resume(project, "--plugin", str(moved / "mine.py")) == 0
    assert updates(project) == [0, 1, 2, 3] and "changed" not in capsys.readouterr().err
    [record] = json.loads((project / "run" / "versions.json").read_text())["plugin_files"]
    assert record["path"] == str(moved / "mine.py")


def test_a_project_that_moved_as_a_whole_is_followed(tmp_path, tiny_folder, monkeypatch):
    here = tmp_path / "before"
    here.mkdir()
    (here / "mine.py").write_text(REWARD, encoding="utf-8")
    (here / "words.py").write_text("WORD = 'cat'\n", encoding="utf-8")
    (here / "prompts.txt").write_text("the cat\na dog\nthe dog sat\na cat ran\nthe\na\n", encoding="utf-8")
    monkeypatch.chdir(here)
    settings = [f"model={tiny_folder}", "run.folder=run", "train.updates=1", *SMALL]
    assert main(["rl", "--quiet", "--plugin", "mine.py", *settings]) == 0
    monkeypatch.chdir(tmp_path)
    after = here.rename(tmp_path / "after")
    assert resumed_files(after / "run") == [after / "mine.py"]
    assert resume(after) == 0


def test_a_manager_without_the_file_is_said(project, caplog):
    note_changed_files(project / "run", PluginManager(entry_points=[]))
    assert f"started with the plugin file {project / 'mine.py'}, which is not loaded now" in caplog.text


def test_a_folder_that_records_nothing_adds_nothing(tmp_path):
    assert resumed_files(tmp_path) == [] and resumed_files(tmp_path, ["a.py"]) == [Path.cwd() / "a.py"]
    (tmp_path / "versions.json").write_text(
        json.dumps({"plugin_files": [{"path": str(tmp_path / "b.py"), "sha256": ""}]})
    )
    with pytest.raises(ResumeError, match=r"b\.py, which does not exist"):
        resumed_files(tmp_path)
