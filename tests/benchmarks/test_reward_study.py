"""The study of reward models: its baseline learns what words tell, its script runs on real preferences."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lmrl.data import Ranking
from lmrl.stages.reward_data import RankedRows
from lmrl.stages.reward_measures import HeldOut

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "studies" / "reward_models.py"
pytest.importorskip("sklearn", reason="scikit-learn is not installed (it is in the bench extra)")


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("reward_models_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rankings(count, seed):
    chance = random.Random(seed)
    made = []
    for number in range(count):
        good = " ".join(chance.choices(["kind", "clear", "a", "b", "c"], k=6))
        bad = " ".join(chance.choices(["rude", "a", "b", "c", "d"], k=6))
        made.append(Ranking(f"prompt {number}", (bad, good), (1, 0)))
    return made


def test_the_bag_of_words_learns_which_words_are_good(study):
    held_out = [RankedRows(((3,), (3,)), (1, 1), one.ranks, (), one) for one in rankings(60, 1)]
    scores = study.bag_of_words(rankings(120, 0), held_out)
    assert HeldOut.of(held_out, scores).accuracy().low > 0.8


def test_one_pair_of_a_ranking(study):
    ranking = Ranking("p", ("a", "b", "c"), (0, 1, 1), (2.0, 1.0, 1.0))
    pairs = {study.one_pair(ranking, seed).completions for seed in range(40)}
    assert pairs == {("a", "b"), ("a", "c")}


@pytest.mark.study
def test_the_script_runs(shared, tmp_path):
    command = [sys.executable, SCRIPT, "--data", shared / "data", "--smoke", "--output", tmp_path / "out.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines} >= {"the longer one", "bag of words", "all pairs", "N-way"}
    assert "| the longer one |" in (tmp_path / "out.md").read_text()
