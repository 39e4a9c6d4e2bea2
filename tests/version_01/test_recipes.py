"""Recipes of version 0.1, those it shipped and those of its pages, run with the lmrl of today."""

import json
from pathlib import Path

import pytest

FILES = Path(__file__).resolve().parents[1] / "fixtures" / "v01" / "recipes"
RECIPES = sorted(file.stem for file in FILES.glob("*.toml"))
TINY = ["model=runs/sft", "run.device=cpu", "sampling.max_new_tokens=6"]
SUPERVISED = ["train.steps=1", "trackers=[]"]
RL = [*TINY, "trackers=[]", "train.updates=1", "train.prompts_per_update=4", "evaluation.prompts=2"]
STORIES = ["prompts.stories.count=12"]
COMMANDS = {
    "arithmetic": ["rl", *RL, "train.group_size=2", "prompts.file.path=sums.jsonl"],
    "dpo": ["rl", *RL, *STORIES, "data.path=runs/prefer/rankings.jsonl"],
    "eval": ["eval", 'models=["runs/sft", "runs/rl"]', "reference=runs/sft", "run.device=cpu", "held_out.prompts=4"],
    "negative_sentiment": ["rl", *RL, "prompts.file.path=recipes/story_openings.txt", "reward.lexicon.path=words.txt"],
    "prefer": ["prefer", *TINY, "prompts.stories.count=4"],
    "pretrain": ["pretrain", 'corpus.paths=["data/corpus.txt"]', "run.device=cpu", *SUPERVISED, "train.rows=2"],
    "reward": ["reward", "model=runs/pretrain", "data.path=runs/prefer/rankings.jsonl", "run.device=cpu", *SUPERVISED],
    "sft": ["sft", *TINY, "data.path=data/conversations.jsonl", *SUPERVISED, "train.epochs=0", "data.held_out=0.25"],
    "stories": ["rl", *RL, *STORIES],
    **{f"grpo-{number}": ["rl", *RL, "model=", *STORIES, "train.group_size=2"] for number in (1, 2, 3)},
}


def test_every_recipe_has_its_command():
    assert sorted(COMMANDS) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_runs(recipe, lmrl, project):
    rows = [{"question": f"the red cat {number} ?", "answer": f"#### {number}"} for number in range(12)]
    (project / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (project / "words.txt").write_text("sad\t-2.1\t0.9\t[-2, -2]\nglad\t2.0\t0.4\t[2, 2]\n", encoding="utf-8")
    command, *overrides = COMMANDS[recipe]
    done = lmrl(command, f"recipes/{recipe}.toml", *overrides, "run.folder=runs/new", "--quiet")
    assert done.code == 0, done.error
    assert json.loads((project / "runs" / "new" / "versions.json").read_text(encoding="utf-8"))["stage"] == command


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["rl", *RL], "prompts.name and reward.name are missing"),
        (["prefer", "model=runs/sft"], "prompts.name and annotators.reward.reward are missing"),
        (["eval", 'models=["runs/sft"]'], "prompts.name and rewards are missing"),
    ],
)
def test_defaults_of_the_stories_are_no_longer_those_of_another_model(command, missing, lmrl):
    done = lmrl(*command, "run.folder=runs/new")
    assert done.code == 2 and "Version 0.1 used those of the stories; docs/migration.md" in done.error
    assert missing in done.error and "their defaults belong to the embedded story model" in done.error
