"""`lmrl quickstart` as a real process: the whole way in small, killed in the middle and continued."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmrl.errors import SettingsError
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.quickstart import quickstart
from lmrl.stages.quickstart.recipes import STAGES, Sizes, recipes
from lmrl.training.run import stage_of

SCALE = "0.02"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PLACE = Path("runs") / "quickstart-1"


def start(cwd: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lmrl", "quickstart", "--scale", SCALE, "--quiet", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(start(folder))


def numbers(folder: Path) -> dict:
    found = {"eval": json.loads((folder / "eval" / "results.json").read_text())}
    for stage in ("pretrain", "sft", "reward", "rl"):
        records = read_metrics(folder / stage)
        found[stage] = [{k: v for k, v in record.items() if not k.startswith("time/")} for record in records]
    found["prefer"] = (folder / "prefer" / "rankings.jsonl").read_text()
    return found


@pytest.mark.slow
def test_every_stage_runs_and_one_page_shows_it(whole):
    folder, output = whole
    for number, stage in enumerate(STAGES, start=1):
        assert f"[{number}/6]" in output and f"(lmrl {stage})" in output
        assert stage_of(folder / PLACE / stage) == stage and (folder / PLACE / "recipes" / f"{stage}.toml").exists()
    for text in (
        "base",
        "SFT",
        "RLHF",
        "best of 8",
        "reward good_story",
        "KL to the reference",
        "win rate against SFT",
    ):
        assert text in output, text
    page = (folder / PLACE / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 7, "a plot for each stage"
    assert "answered side by side" in page and "lmrl chat runs/quickstart-1/rl" in page
    assert f"lmrl chat {PLACE}/rl" in output


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prefer", "rl"])
def test_killed_and_started_again_it_continues_to_the_same_result(whole, tmp_path, stage):
    process = start(tmp_path)
    deadline = time.monotonic() + 400
    sign = tmp_path / PLACE / stage / ("samples.jsonl" if stage == "prefer" else "metrics.jsonl")
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert sign.exists() and not (tmp_path / PLACE / "report.html").exists()
    pretrained = (tmp_path / PLACE / "pretrain" / "metrics.jsonl").read_bytes()
    finish(start(tmp_path))
    assert [path.name for path in (tmp_path / "runs").glob("quickstart-*")] == ["quickstart-1"]
    assert (tmp_path / PLACE / "pretrain" / "metrics.jsonl").read_bytes() == pretrained, "nothing is trained twice"
    assert numbers(tmp_path / PLACE) == numbers(whole[0] / PLACE)


def test_a_finished_one_is_left_alone_and_a_folder_of_something_else_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(SettingsError, match="not empty"):
        quickstart(mine, progress=False)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "quickstart.json").write_text('{"seed": 3, "scale": 0.5}')
    with pytest.raises(SettingsError, match=r"seed 3 and scale 0\.5"):
        quickstart(tmp_path / "begun", progress=False)
    (tmp_path / "begun" / "quickstart.json").write_text('{"seed": 3')
    with pytest.raises(SettingsError, match="is broken"):
        quickstart(tmp_path / "begun", progress=False)
    with pytest.raises(SettingsError, match="scale is 0"):
        quickstart(scale=0)
    assert (mine / "thesis.txt").read_text() == "precious" and not (tmp_path / "runs").exists()


def test_recipes_lead_from_stage_to_stage(tmp_path):
    tables = recipes(tmp_path, Sizes(), seed=4)
    assert list(tables) == list(STAGES) and all(table["run"]["seed"] == 4 for table in tables.values())
    assert tables["sft"]["model"] == tables["pretrain"]["run"]["folder"]
    assert tables["reward"]["data"]["path"].startswith(tables["prefer"]["run"]["folder"])
    assert tables["rl"]["reward"]["learned"]["path"] == tables["reward"]["run"]["folder"]
    small = Sizes().scaled(0.001)
    assert small.responses == 4 and small.sft_steps == 2 and Sizes().scaled(1) == Sizes()
