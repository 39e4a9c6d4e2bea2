"""Every recipe under examples/ is one that its command understands, plugins' sections included."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import pytest

from lmrl.data import load_prompts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = sorted(path.name for path in EXAMPLES.glob("*.toml"))


CONFIGS = {
    "rl": "rl.config:RLConfig",
    "sft": "sft.config:SFTConfig",
    "reward": "reward.config:RewardConfig",
    "prefer": "prefer.config:PreferConfig",
    "pretrain": "pretrain.config:PretrainConfig",
    "eval": "evaluate.config:EvaluateConfig",
}


def command_of(name):
    found = re.search(rf"lmrl (\w+) examples/{name}", (EXAMPLES / name).read_text(encoding="utf-8"))
    assert found, f"{name} does not say how to run it"
    return found[1]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_understood(name):
    from lmrl.config import PluginChoice, build, read_toml
    from lmrl.plugins import PluginManager

    module, _, cls = CONFIGS[command_of(name)].partition(":")
    config = build(getattr(import_module(f"lmrl.stages.{module}"), cls), read_toml(EXAMPLES / name))
    plugins = PluginManager()
    for field in dataclasses.fields(config):
        choice = getattr(config, field.name)
        if isinstance(choice, PluginChoice) and choice.name:  # trackers are a list of names beside their tables
            spec, settings = choice.resolve(plugins)
            assert isinstance(settings, spec.settings)


def test_the_openings_are_distinct_prompts():
    prompts = load_prompts(EXAMPLES / "story_openings.txt").prompts
    assert len(set(prompts)) == len(prompts) >= 128
