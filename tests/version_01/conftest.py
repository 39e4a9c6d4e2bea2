"""A copy of what version 0.1 left, as a user has it: plugins, recipes, runs; and the command to go on with."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmrl.cli.main import main

FILES = Path(__file__).resolve().parents[1] / "fixtures" / "v01"


@dataclass(frozen=True)
class Done:
    """Exit code and output of a command."""

    code: int
    out: str
    error: str


@pytest.fixture(scope="session")
def states() -> Any:
    """Return the module that stores and makes training states."""
    spec = importlib.util.spec_from_file_location("v01_states", FILES / "states.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def restored(states: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v01") / "project"
    shutil.copytree(FILES, folder, symlinks=True)
    for file in folder.rglob("trainer_state.json"):
        states.restore(file.with_suffix(".pt"))
    return folder


@pytest.fixture
def project(restored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project of version 0.1 of the test's own, which is the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(restored, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def lmrl(project: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Return a function that runs the command in the project, in this process: a traceback ends the test."""

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        code = main(list(arguments))
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture
def lmrl_process(project: Path) -> Callable[..., Done]:
    """Return a function that runs the command in the project as a user does, in a process of its own."""

    def run(*arguments: str, typed: str = "") -> Done:
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "lmrl", *arguments]
        done = subprocess.run(
            command, cwd=project, capture_output=True, text=True, env=variables, input=typed, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run
