"""What commands that run a stage from a recipe share."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from lmrl.cli import recipes


@dataclass
class Config:
    steps: int = 1


@pytest.mark.parametrize(("rank", "printed"), [(None, ["2 steps"]), ("0", ["2 steps"]), ("1", [])])
def test_the_main_process_alone_reports(monkeypatch, rank, printed):
    found, calls = [], []

    def stage(config, **named):
        calls.append(named)
        return SimpleNamespace(steps=config.steps, interrupted=False)

    module = SimpleNamespace(Config=Config, stage=stage, report=lambda result: found.append(f"{result.steps} steps"))
    monkeypatch.setitem(sys.modules, "a_stage", module)
    monkeypatch.setattr(recipes, "STAGE_CONFIGS", {})
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    command = recipes.recipe_command(
        "a", config="a_stage:Config", stage="a_stage:stage", report="a_stage:report", summary="", example=""
    )
    arguments = SimpleNamespace(recipe="steps=2", overrides=[], resume=None, quiet=True, plugin_manager=None)
    assert command.run(arguments) == 0 and len(calls) == 1 and found == printed
