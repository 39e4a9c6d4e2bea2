"""The README's block "On your own data" runs as printed, from the first line to the last, at smaller sizes."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lmrl.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SMALLER = {
    "pretrain": "train.steps=20 train.warmup_steps=2 model.hidden_size=32 model.layers=1 corpus.limit=200",
    "sft": "train.steps=3 data.limit=40 samples.prompts=1",
    "prefer": "samples.prompts=12 sampling.max_new_tokens=12 annotators.happy.reward=pattern "
    "annotators.happy.settings.pattern=[aeiou] annotators.happy.settings.mode=count",
    "reward": "train.steps=2 train.rankings_per_step=4 normalise.count=8",
    "rl": "train.updates=1 train.prompts_per_update=8 evaluation.prompts=8 sampling.max_new_tokens=12",
    "eval": "held_out.prompts=8 sampling.max_new_tokens=12",
    "compare": "--max-new-tokens 12",
    "chat": "--max-new-tokens 12",
    "config": "",
}
"""Appended to the printed commands: a fraction of the time, the same steps."""


def printed_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("On your own data")[2]
    block = re.search(r"```sh\n(.*?)```", text, re.S)
    assert block, "the README has no block of commands on one's own data"
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_every_stage_is_in_the_block():
    commands = printed_commands()
    assert all(command[0] == "lmrl" for command in commands)
    assert [command[1] for command in commands] == list(SMALLER)


@pytest.mark.filterwarnings("ignore")
def test_the_block_runs_from_the_first_line_to_the_last(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    for _, name, *arguments in printed_commands():
        monkeypatch.setattr("sys.stdin", io.StringIO("Please tell a story about Mia.\n"))
        code = main(
            [name, *arguments, *SMALLER[name].split(), *(["--quiet"] if name not in ("chat", "config") else [])]
        )
        said = capsys.readouterr()
        assert code == 0, f"lmrl {name}: {said.err}"
        assert "Traceback" not in said.err and said.out.strip(), name
    made = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert made == {"corpora", "pretrain-1", "sft-1", "prefer-1", "reward-1", "rl-1", "eval-1"}
