"""A model of one's own is not trained, ranked or measured on the embedded stories unless somebody says so."""

from __future__ import annotations

import gymnasium as gym
import pytest

from lmrl.config import build
from lmrl.errors import LmrlError, SettingsError
from lmrl.plugins import PluginManager
from lmrl.stages.evaluate import EvaluateConfig, evaluate
from lmrl.stages.prefer import PreferConfig, prefer
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.sft import SFTConfig, sft
from lmrl.stories import MODEL_PATH
from lmrl.stories.recognise import is_story_model
from lmrl.text.card import load_card

FILE = {"name": "file", "file": {"path": "there-is-none.jsonl"}}
STORIES = {"name": "stories"}


@pytest.fixture(scope="module")
def plugins():
    return PluginManager()


@pytest.fixture(scope="module")
def descendant(tmp_path_factory):
    """A run that starts from the embedded model and adds the tokens of a chat template."""
    folder = tmp_path_factory.mktemp("descendant") / "run"
    rows = [{"instruction": f"Tell a story about {name}.", "output": f"{name} was happy."} for name in ("Mia", "Tom")]
    config = build(SFTConfig, {"run": {"folder": str(folder)}, "data": {"held_out": 0}, "train": {"steps": 1}})
    sft(config, examples=rows, progress=False)
    return folder


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({}, ("prompts.name", "reward.name", "prompts.file.path")),
        ({"reward": {"name": "length"}}, ("prompts.name",)),
        ({"reward_weights": {"length": 1.0}}, ("prompts.name",)),
        ({"prompts": STORIES}, ("reward.name",)),
        ({"prompts": {"stories": {"count": 8}}}, ("prompts.name", "reward.name")),
        ({"optimizer": {"name": "dpo"}, "data": {"path": "x"}}, ("prompts.name", "evaluation.prompts=0")),
    ],
)
def test_rl_names_what_to_set(tiny_folder, tmp_path, plugins, table, named):
    config = build(RLConfig, {"model": str(tiny_folder), "run": {"folder": str(tmp_path / "run")}, **table})
    with pytest.raises(SettingsError) as error:
        rl(config, plugins=plugins, progress=False)
    assert "missing" in str(error.value) and all(name in str(error.value) for name in named)
    assert ("reward.name" in str(error.value)) == ("reward.name" in named or "optimizer" in table)
    assert not (tmp_path / "run").exists()


def test_what_the_caller_brings_is_not_missing(tiny_folder, tmp_path, plugins):
    config = build(RLConfig, {"model": str(tiny_folder), "train": {"updates": 1, "prompts_per_update": 2}})
    config.run.folder, config.evaluation.prompts = str(tmp_path / "run"), 0
    config.optimizer.tables["ppo"] = {"minibatches": 1}
    prompts = ["the cat", "a dog"]
    rl(config, prompts=prompts, reward=lambda prompts, responses: [1.0] * len(prompts), plugins=plugins, progress=False)
    with pytest.raises(SettingsError, match=r"^prompts\.name is missing"):
        rl(config, reward=lambda prompts, responses: [1.0] * len(prompts), plugins=plugins, progress=False)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({}, ("prompts.name", "annotators.reward.reward")),
        ({"prompts": STORIES}, ("annotators.reward.reward",)),
        ({"prompts": STORIES, "annotators": {"me": {}}}, ("annotators.me.reward",)),
        ({"annotators": {"me": {"reward": "length"}}}, ("prompts.name",)),
        ({"annotators": {"me": {"kind": "person"}}}, ("prompts.name",)),
    ],
)
def test_prefer_names_what_to_set(tiny_folder, tmp_path, plugins, table, named):
    config = build(PreferConfig, {"model": str(tiny_folder), "run": {"folder": str(tmp_path / "run")}, **table})
    with pytest.raises(SettingsError) as error:
        prefer(config, plugins=plugins, progress=False)
    assert all(name in str(error.value) for name in named) and not (tmp_path / "run").exists()


def test_completions_from_a_file_are_ranked_by_the_stories_reward_with_a_warning(tmp_path, plugins, caplog):
    file = tmp_path / "completions.jsonl"
    file.write_text('{"prompt": "a", "completions": ["b", "c"]}\n')
    config = build(PreferConfig, {"completions_from": {"path": str(file)}, "run": {"folder": str(tmp_path / "run")}})
    prefer(config, plugins=plugins, progress=False)
    assert any("annotators.reward.reward is missing" in text and str(file) in text for text in caplog.messages)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({}, ("prompts.name", "rewards")),
        ({"rewards": ["length"]}, ("prompts.name",)),
        ({"rewards": []}, ("prompts.name",)),
        ({"prompts": STORIES}, ("rewards",)),
    ],
)
def test_eval_names_what_to_set(tiny_folder, tmp_path, plugins, table, named):
    for models in ([str(tiny_folder)], ["stories", str(tiny_folder)]):
        config = build(EvaluateConfig, {"models": models, "run": {"folder": str(tmp_path / "run")}, **table})
        with pytest.raises(SettingsError) as error:
            evaluate(config, plugins=plugins, progress=False)
        assert all(name in str(error.value) for name in named) and not (tmp_path / "run").exists()


def test_the_environment_names_what_to_pass(tiny_folder):
    for maker in (gym.make, gym.make_vec):
        with pytest.raises(LmrlError, match=r"^prompts and reward are missing"):
            maker("lmrl:TextGen-v0", model=str(tiny_folder))
        with pytest.raises(LmrlError, match=r"^prompts is missing"):
            maker("lmrl:TextGen-v0", model=str(tiny_folder), reward="length")
        with pytest.raises(LmrlError, match=r"^reward is missing"):
            maker("lmrl:TextGen-v0", model=str(tiny_folder), prompts=["the cat"])


def test_a_run_that_starts_from_the_embedded_model_has_the_defaults(descendant, tiny_folder, tmp_path, plugins):
    assert is_story_model(load_card(str(MODEL_PATH))) and is_story_model(load_card(str(descendant)))
    assert not is_story_model(load_card(str(tiny_folder)))
    gym.make("lmrl:TextGen-v0", model=str(descendant)).close()
    small = {"prompts": {"stories": {"count": 8}}, "sampling": {"max_new_tokens": 4}}
    folder = {"run": {"folder": str(tmp_path / "eval")}, "held_out": {"prompts": 0}}
    result = evaluate(build(EvaluateConfig, {"models": [str(descendant)], **small, **folder}), progress=False)
    assert "reward:happy_end" in result.values[0]
    folder = {"run": {"folder": str(tmp_path / "prefer")}}
    prefer(build(PreferConfig, {"model": str(descendant), **small, **folder}), plugins=plugins, progress=False)


def test_a_run_that_names_its_prompts_takes_any_model(tiny_folder, tmp_path, plugins):
    table = {"models": [str(tiny_folder)], "prompts": FILE, "rewards": ["repetition"]}
    with pytest.raises(LmrlError, match="there-is-none"):
        evaluate(build(EvaluateConfig, table), plugins=plugins, progress=False)
