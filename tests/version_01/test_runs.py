"""Runs of version 0.1 resume to the metrics that it reached itself, or stop with an error that says what changed.

What is sampled is another: version 0.2 draws other responses with the same seed.
"""

import json
import math
import shutil

import pytest
import torch

STAGES = {"pretrain": "pretrain", "sft": "sft", "lora": "sft", "reward": "reward", "rl": "rl", "dpo": "rl"}
"""Runs that resume, and their commands."""
TEACHER_FORCED = {"perplexity", "bits_per_byte", "nats_per_token"}
"""Measures of an evaluation that need no samples."""


def cut(project, name):
    """Leave a run as a kill after its first checkpoint leaves it."""
    folder = project / "runs" / name
    [_, newest] = sorted(folder.glob("checkpoint-*"))
    shutil.rmtree(newest)
    (folder / "checkpoint").unlink()
    return folder


def close(found, expected):
    """True where numbers agree, up to rounding on another processor."""
    return math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-4)


def is_sampled(stage, metric):
    """True for figures of sampled responses."""
    kinds = {"rl": ("rollout/", "optimizer/", "evaluation/"), "dpo": ("evaluation/",)}
    return metric.startswith(kinds.get(stage, ())) and metric not in ("optimizer/learning_rate", "optimizer/steps")


def is_made_with_this_torch(folder):
    """True where the figures of a run can be had again: another torch may draw other random numbers."""
    recorded = json.loads((folder / "versions.json").read_text(encoding="utf-8"))["libraries"]["torch"]
    return recorded.partition("+")[0] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize("name", STAGES)
def test_it_resumes_to_the_same_metrics(name, lmrl, project, states):
    expected = states.numbers(project / "runs" / name / "metrics.jsonl")
    same_torch = is_made_with_this_torch(project / "runs" / name)
    folder = cut(project, name)
    done = lmrl(STAGES[name], "--resume", f"runs/{name}", "--quiet")
    assert done.code == 0, done.error
    found = states.numbers(folder / "metrics.jsonl")
    assert len(found) == len(expected) and (folder / "checkpoint" / "trainer_state.pt").exists()
    compared = 0
    for now, before in zip(found, expected, strict=True):
        assert before.keys() <= now.keys()
        repeated = {key: value for key, value in before.items() if not is_sampled(name, key)}
        compared += len(repeated)
        different = {key: (now[key], value) for key, value in repeated.items() if not close(now[key], value)}
        assert not different or not same_torch
    assert compared >= 6
    assert json.loads((folder / "versions.json").read_text(encoding="utf-8"))["plugin_api"] >= 2


def test_a_run_whose_folder_has_another_name_is_resumed_from_the_current_folder(lmrl, project):
    cut(project, "reward").rename(project / "renamed")
    done = lmrl("reward", "--resume", "renamed", "--quiet")
    assert done.code == 0 and (project / "renamed" / "checkpoint-000004").exists()
    assert "renamed does not record the folder in which it was started, as no run of version 0.1 does" in done.error


def test_weight_decay_of_rl_has_changed(lmrl_process, project):
    cut(project, "decay")
    done = lmrl_process("rl", "--resume", "runs/decay", "--quiet")
    assert done.code == 2 and "Traceback" not in done.error
    assert "Version 0.1 of lmrl let all parameters of a policy decay" in done.error
    assert "docs/migration.md" in done.error and "model=" in done.error


def test_its_chat_gives_the_same_answers(lmrl_process, project):
    typed = "Who is the bear ?\n/quit\n"
    done = lmrl_process("chat", "runs/sft", "--greedy", "--max-new-tokens", "8", typed=typed)
    assert done.code == 0, done.error
    assert done.out == (project / "outputs" / "chat.txt").read_text(encoding="utf-8")


def test_an_evaluation_gives_the_same_results(lmrl, project):
    recipe = "runs/eval/config.toml"
    done = lmrl("eval", recipe, "run.folder=runs/new", "--plugin", "plugins/my_reward.py", "--quiet")
    assert done.code == 0, done.error
    before, now = (results(project / "runs" / name) for name in ("eval", "new"))
    assert before.keys() <= now.keys() and len(before) > 20
    repeated = {key: value for key, value in before.items() if key[1] in TEACHER_FORCED}
    assert len(repeated) >= 3
    for key, value in repeated.items():
        assert close(now[key], value), key


def results(folder):
    """Return the means of an evaluation by model and measure."""
    columns = json.loads((folder / "results.json").read_text(encoding="utf-8"))["columns"]
    return {(one["name"], name): value["mean"] for one in columns for name, value in one["measures"].items()}


def test_a_finished_evaluation_and_finished_preferences_are_not_computed_again(lmrl, project):
    before = {file: file.read_bytes() for file in project.glob("runs/prefer/*.jsonl")}
    assert lmrl("prefer", "--resume", "runs/prefer", "--quiet").code == 0
    assert before and all(file.read_bytes() == content for file, content in before.items())
    assert lmrl("eval", "--resume", "runs/eval", "--plugin", "plugins/my_reward.py", "--quiet").code == 0


def test_a_reward_model_and_an_adapter_serve_a_run(lmrl, project):
    settings = ["prompts.name=file", "prompts.file.path=data/prompts.jsonl", "run.device=cpu", "trackers=[]"]
    sizes = ["train.updates=1", "train.prompts_per_update=4", "evaluation.prompts=2", "sampling.max_new_tokens=6"]
    reward = ["reward.name=learned", "reward.learned.path=runs/reward"]
    done = lmrl("rl", "model=runs/lora", "run.folder=runs/new", *settings, *sizes, *reward, "--quiet")
    assert done.code == 0, done.error
