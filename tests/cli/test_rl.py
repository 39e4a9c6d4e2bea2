"""`lmrl rl` as a real process: recipe, overrides, resume, and what it prints."""

import os
import subprocess
import sys

import pytest

from lmrl.cli.main import main
from lmrl.reporting.metrics import read_metrics

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


LABELS = '{"prompt": "Once", "completion": " upon a time.", "label": true}\n{"prompt": "The", "completion": " dog."}\n'
FILES = {
    "labels.jsonl": LABELS.replace(' dog."', ' dog.", "label": false'),
    "prompts.jsonl": '{"prompt": "Once"}\n{"prompt": "The"}\n',
    "pairs.jsonl": '{"prompt": "Once", "chosen": " upon a time.", "rejected": " sad."}\n',
}


@pytest.mark.parametrize(
    ("overrides", "found", "remedy"),
    [
        (["optimizer.name=grpo"], "train.group_size is 1", "set train.group_size=2 or more"),
        (["optimizer.name=ilql"], "learns from logged answers with their rewards", "data.path=..., such as a file"),
        (["optimizer.name=ilql", "data.path=prompts.jsonl"], "found the columns prompt", "give rows with prompt, comp"),
        (["optimizer.name=dpo", "data.path=prompts.jsonl"], "they are prompts alone", "learns from pairs or rankings"),
        (["optimizer.name=dpo", "data.path=labels.jsonl"], "taken for the shape labelled", "other optimizers learn"),
        (["optimizer.name=ppo", "data.path=pairs.jsonl"], "learns from what it samples", "leave data out"),
    ],
)
def test_needs_that_cannot_be_met_are_refused_with_the_remedy(tmp_path, monkeypatch, capsys, overrides, found, remedy):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["rl", *overrides, "--quiet"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: ") and found in said and remedy in said
    assert not (tmp_path / "runs").exists()


UNDECLARED = """
from lmrl import Advantages, Loss, OptimizerSettings, OptimizerSpec, PolicyOptimizer, hookimpl

class Settings(OptimizerSettings):
    pass

class Undeclared(PolicyOptimizer):
    def __init__(self, settings):
        pass

    def advantages(self, rollout):
        return Advantages(rollout.scores[:, None] - rollout.values)

    def loss(self, policy, batch):
        return Loss(-policy.evaluate(batch).logprobs * batch.advantages)

@hookimpl
def lmrl_optimizers():
    yield OptimizerSpec("undeclared", Undeclared, Settings)
"""


def test_a_need_that_is_read_and_not_declared_is_one_paragraph_too(recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "undeclared.py").write_text(UNDECLARED)
    monkeypatch.chdir(tmp_path)
    assert main(["rl", "--plugin", "undeclared.py", str(recipe), "optimizer.name=undeclared", "--quiet"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rollout.values was read" in said and "Needs(values=True)" in said and "Traceback" not in said
