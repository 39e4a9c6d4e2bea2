"""A run with relative paths resumes from any folder, follows a project that moved, and says what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmrl.cli.main import main
from lmrl.training.origin import starting_folder

REWARD = "def words(prompts, responses):\n    return [float(len(text.split())) for text in responses]\n"
SMALL = ["train.prompts_per_update=4", "optimizer.ppo.minibatches=1", "sampling.max_new_tokens=4"]
STAGES = {
    "rl": [
        "model=base",
        "reference=base",
        "prompts.file.path=data/prompts.txt",
        "reward.name=counted_words_of_a_project:words",
        "train.updates=1",
        "evaluation.prompts=2",
        *SMALL,
    ],
    "sft": ["model=base", "data.path=data/pairs.jsonl", "data.held_out_path=data/pairs.jsonl", "train.steps=1"],
    "prefer": [
        "model=base",
        "prompts.file.path=data/prompts.txt",
        "annotators.me.reward=counted_words_of_a_project:words",
        "sampling.max_new_tokens=4",
        "samples.per_prompt=2",
    ],
    "reward": ["model=base", "data.path=data/preferences.jsonl", "data.held_out=0", "train.steps=1"],
    "pretrain": [
        'corpus.paths=["data/prompts.txt"]',
        "corpus.held_out=0",
        "tokenizer.kind=bytes",
        "model.hidden_size=8",
        "model.layers=1",
        "model.heads=1",
        "model.context_length=8",
        "train.steps=1",
        "samples.prompts=[]",
    ],
    "eval": [
        'models=["base"]',
        "reference=base",
        'rewards=["counted_words_of_a_project:words"]',
        "prompts.file.path=data/prompts.txt",
        "held_out.prompts=0",
        "sampling.max_new_tokens=4",
    ],
}
FREE = {"rl": ["train.updates=2"], "eval": ["show=1"], "prefer": ["output.pairs=adjacent"]}


@pytest.fixture
def project(tmp_path, tiny_folder):
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    shutil.copytree(tiny_folder, folder / "base")
    (folder / "counted_words_of_a_project.py").write_text(REWARD)
    prompts = ["the cat", "a dog", "the dog", "a cat", "the cat sat", "a dog ran", "the dog sat", "a cat ran"]
    (folder / "data" / "prompts.txt").write_text("\n".join(prompts) + "\n")
    rows = [{"prompt": text, "completion": " home ."} for text in prompts]
    (folder / "data" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": text, "chosen": " home .", "rejected": " sad ."} for text in prompts]
    (folder / "data" / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def own_imports(monkeypatch):
    """The project's reward module is found through the current folder, which must not stay on the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("counted_words_of_a_project", None)


def forget(monkeypatch):
    sys.modules.pop("counted_words_of_a_project", None)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "project" not in entry])


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_resumes_from_another_folder(stage, project, tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    assert main([stage, *STAGES[stage], "run.folder=runs/one", "--quiet"]) == 0, capsys.readouterr().err
    forget(monkeypatch)
    monkeypatch.chdir(elsewhere)
    assert main([stage, "--resume", "../project/runs/one", *FREE.get(stage, []), "--quiet"]) == 0, (
        capsys.readouterr().err
    )
    assert "relative paths are read from" in capsys.readouterr().err
    assert Path.cwd() == elsewhere and not list(elsewhere.iterdir())


def test_a_moved_project_is_followed(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["rl", *STAGES["rl"], "run.folder=runs/one", "--quiet"]) == 0
    forget(monkeypatch)
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved-project"
    project.rename(moved)
    assert main(["rl", "--resume", "moved-project/runs/one", "train.updates=2", "--quiet"]) == 0
    assert str(moved) in capsys.readouterr().err
    assert main(["rl", "--resume", "moved-project/runs/one", "run.folder=runs/two", "--quiet"]) == 2
    assert "run.folder cannot change in a resumed run" in capsys.readouterr().err


def test_a_moved_run_folder_says_where_it_was_started(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["rl", *STAGES["rl"], "run.folder=runs/one", "--quiet"]) == 0
    forget(monkeypatch)
    monkeypatch.chdir(tmp_path)
    shutil.move(project / "runs" / "one", tmp_path / "kept")
    assert main(["rl", "--resume", "kept", "train.updates=2", "--quiet"]) == 0  # the project is still there
    forget(monkeypatch)
    capsys.readouterr()
    project.rename(tmp_path / "renamed")
    assert main(["rl", "--resume", "kept", "train.updates=3", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert str(project) in said and "does not exist" in said and "base" in said


def test_an_override_is_not_read_from_the_wrong_folder(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["eval", *STAGES["eval"], "run.folder=runs/one", "--quiet"]) == 0
    forget(monkeypatch)
    here = tmp_path / "here"
    (here / "reward-model").mkdir(parents=True)
    monkeypatch.chdir(here)
    capsys.readouterr()
    assert main(["eval", "--resume", "../project/runs/one", 'rewards=["reward-model"]', "--quiet"]) == 2
    assert str(here / "reward-model") in capsys.readouterr().err


def test_a_process_of_its_own_resumes_elsewhere(project, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lmrl", "rl"]
    started = [*command, *STAGES["rl"], "run.folder=runs/one", "--quiet"]
    done = subprocess.run(started, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resumed = [*command, "--resume", "project/runs/one", "train.updates=2", "--quiet"]
    done = subprocess.run(resumed, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert starting_folder(project / "runs" / "one") == project


def test_a_run_without_a_record_is_placed_by_its_relative_path(tmp_path):
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[run]\nfolder = "runs/old"\n')
    assert starting_folder(folder) == tmp_path
    (folder / "config.toml").write_text('[run]\nfolder = "elsewhere/old"\n')
    assert starting_folder(folder) is None
