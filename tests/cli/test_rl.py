"""`lmrl rl` as a real process: recipe, overrides, resume, and what it prints."""

import os
import subprocess
import sys

import pytest

from lmrl.stages.run import read_metrics

RECIPE = """
[run]
device = "cpu"

[prompts.stories]
count = 64

[sampling]
max_new_tokens = 12

[reward]
name = "happy_end"

[train]
updates = 2
prompts_per_update = 8

[evaluation]
prompts = 8
"""


def lmrl(*arguments, cwd, expect=0):
    command = [sys.executable, "-m", "lmrl", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file


@pytest.mark.slow
def test_a_recipe_runs_stops_and_resumes(recipe, tmp_path):
    output = lmrl("rl", recipe, "run.folder=runs/a", "optimizer.name=reinforce", cwd=tmp_path)
    for expected in ("before", "after", "KL to the reference", "runs/a/curves.png", "tensorboard --logdir runs"):
        assert expected in output
    folder = tmp_path / "runs" / "a"
    assert (folder / "curves.png").stat().st_size > 1000
    assert [record["update"] for record in read_metrics(folder)] == [0, 1, 2]
    assert 'name = "reinforce"' in (folder / "config.toml").read_text()
    assert "already holds a run" in lmrl("rl", recipe, "run.folder=runs/a", cwd=tmp_path, expect=2)
    lmrl("rl", "--resume", "runs/a", "train.updates=3", cwd=tmp_path)
    assert [record["update"] for record in read_metrics(folder)] == [0, 1, 2, 3]
    refused = lmrl("rl", "--resume", "runs/a", "kl.beta=0.5", cwd=tmp_path, expect=2)
    assert "kl.beta cannot change in a resumed run" in refused
    assert "holds no config.toml" in lmrl("rl", "--resume", "runs/b", cwd=tmp_path, expect=2)
    assert "leave out the recipe" in lmrl("rl", recipe, "--resume", "runs/a", cwd=tmp_path, expect=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.name=pop", "did you mean 'ppo'"),
        ("optimizer.ppo.clip_rnage=0.1", "clip_range"),
        ("train.updates=many", "train.updates"),
        ("reward.name=lexcion", "did you mean 'lexicon'"),
        ("model=no/such/folder/here", "no model folder"),
    ],
)
def test_mistakes_are_one_clear_paragraph(recipe, tmp_path, override, message):
    output = lmrl("rl", recipe, override, cwd=tmp_path, expect=2)
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "runs").exists()
