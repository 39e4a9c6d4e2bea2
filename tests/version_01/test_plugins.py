"""Plugins of version 0.1 work, or stop with an error that names what changed and docs/migration.md."""

import pytest

from lmrl.cli.main import main

RUN = ["rl", "model=runs/sft", "run.device=cpu", "run.folder=runs/new", "train.updates=1", "train.prompts_per_update=4"]
RUN += ["train.group_size=2", "evaluation.prompts=2", "sampling.max_new_tokens=6", "--quiet"]
PROMPTS = ["prompts.name=file", "prompts.file.path=data/prompts.jsonl"]
LENGTH = ["reward.name=length", "reward.length.maximum=4"]
PICKED = {
    "my_optimizer": [*PROMPTS, *LENGTH, "trackers=[]", "optimizer.name=my_optimizer"],
    "deep_imports": [*PROMPTS, *LENGTH, "trackers=[]", "optimizer.name=deep_imports"],
    "my_engine": [*PROMPTS, *LENGTH, "trackers=[]", "engine.name=my_engine"],
    "colder": [*PROMPTS, *LENGTH, "trackers=[]", "engine.name=colder"],
    "timed": [*PROMPTS, *LENGTH, "trackers=[]", "engine.name=timed"],
    "by_position": [*PROMPTS, "trackers=[]", "reward.name=by_position"],
    "loose_default": [*PROMPTS, "trackers=[]", "reward.name=loose_default"],
    "my_reward": [*PROMPTS, "trackers=[]", "reward.name=my_reward", "reward.my_reward.words=4"],
    "my_dataset": [*LENGTH, "trackers=[]", "prompts.name=my_dataset"],
    "printer": [*PROMPTS, *LENGTH, 'trackers=["printer"]'],
}


def run(lmrl, plugin):
    return lmrl(*RUN, "--plugin", f"plugins/{plugin}.py", *PICKED[plugin])


@pytest.mark.parametrize("plugin", ["my_reward", "my_dataset", "printer"])
def test_it_works(plugin, lmrl, project):
    done = run(lmrl, plugin)
    assert done.code == 0, done.error
    assert (project / "runs" / "new" / "checkpoint" / "model.safetensors").exists()
    if plugin == "printer":
        assert "printer 1 True" in done.out and "8 episodes, mean score" in done.out


@pytest.mark.parametrize(
    ("plugin", "change"),
    [
        ("my_optimizer", "behavior_logprobs is sampler_logprobs (what the engine recorded) or proximal_logprobs"),
        ("deep_imports", "lmrl.ops is lmrl.algorithms now"),
        ("loose_default", "Version 0.1 did not check defaults"),
        ("by_position", "Rename the parameters: version 0.1 passed them by position"),
    ],
)
def test_it_stops_with_what_changed(plugin, change, lmrl):
    done = run(lmrl, plugin)
    assert done.code == 2 and done.error.splitlines()[-1].startswith("error: ")
    assert change in done.error and "docs/migration.md" in done.error and "Traceback" not in done.error


@pytest.mark.parametrize(
    ("plugin", "change"),
    [
        ("my_engine", "lmrl.rollout is lmrl.algorithms now"),
        ("timed", "lmrl.sampling is lmrl.engines now"),
        ("colder", ""),  # imports what has not moved: the error is about its columns, or about the engine itself
    ],
)
def test_an_engine_works_or_stops_with_what_changed(plugin, change, lmrl_process):
    done = run(lmrl_process, plugin)
    if done.code:
        assert done.code == 2 and change in done.error
        assert "docs/migration.md" in done.error and "Traceback" not in done.error


@pytest.mark.parametrize("plugin", PICKED)
def test_the_listing_shows_what_loads_and_why_not(plugin, lmrl):
    done = lmrl("plugins", "--json", "--plugin", f"plugins/{plugin}.py")
    if done.code:
        assert "docs/migration.md" in done.out
    else:
        assert f'"name": "{plugin}"' in done.out and '"api": null' in done.out


def test_a_benchmark_works(project, monkeypatch, capfd):
    monkeypatch.chdir(project / "plugins")  # its suite names functions of the module beside it
    arguments = ["--smoke", "--quiet", "--output", "../results.jsonl", "--optimizers", "rloo", "--seeds", "1"]
    assert main(["bench", "run", "my_benchmark", "--plugin", "my_benchmark.py", *arguments]) == 0, capfd.readouterr()
    assert '"status":"done"' in (project / "results.jsonl").read_text(encoding="utf-8")
