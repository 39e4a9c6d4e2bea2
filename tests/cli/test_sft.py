"""`lmrl sft` as a person types it."""

import json
import subprocess
import sys

import pytest

from lmrl.testing import write_tiny_model

pytestmark = pytest.mark.slow


def lmrl(*arguments, cwd):
    command = [sys.executable, "-m", "lmrl", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


def test_a_recipe_runs_and_reports(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    rows = [
        {"instruction": f"the {a} {b}", "input": "", "output": f"{b} {a} {c}"}
        for a in ("cat", "dog")
        for b in ("ran", "sat", "far")
        for c in (".", "!")
    ]
    rows.append({"instruction": "the cat", "input": "", "output": ""})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "sft.toml").write_text(
        f'model = "{model}"\n[run]\ndevice = "cpu"\n[data]\npath = "rows.json"\nheld_out = 2\n[train]\nsteps = 4\n'
        "[sampling]\nmax_new_tokens = 5\n"
    )
    done = lmrl(
        "sft", "sft.toml", "run.folder=runs/a", "adapter.method=lora", "samples.prompts=1", "--quiet", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for expected in (
        "left out 1: an empty output (first: row 13)",
        "loss (nats per token)",
        "perplexity",
        "reference",
        "lmrl chat runs/a",
    ):
        assert expected in done.stdout, done.stdout
    assert "taken for the shape alpaca" in done.stderr and "new tokens <|system|>" in done.stderr
    assert "step/s" not in done.stderr
    resumed = lmrl("sft", "--resume", "runs/a", "train.microbatch_tokens=64", cwd=tmp_path)
    assert resumed.returncode == 0 and "loss (nats per token)" in resumed.stdout
    wrong = lmrl("sft", "sft.toml", "adaptor.method=lora", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'adapter'" in wrong.stderr
