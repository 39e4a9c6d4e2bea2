"""Every recipe under examples/ is one that `lmrl rl` understands, plugins' sections included."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmrl.data import load_prompts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = sorted(path.name for path in EXAMPLES.glob("*.toml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_understood(name):
    from lmrl.config import build, read_toml
    from lmrl.plugins import PluginManager
    from lmrl.stages.rl_config import RLConfig

    config = build(RLConfig, read_toml(EXAMPLES / name))
    plugins = PluginManager()
    for choice in (config.prompts, config.engine, config.reward, config.optimizer):
        spec, settings = choice.resolve(plugins)
        assert isinstance(settings, spec.settings)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_to_run_it(name):
    assert f"lmrl rl examples/{name}" in (EXAMPLES / name).read_text(encoding="utf-8")


def test_the_openings_are_distinct_prompts():
    prompts = load_prompts(EXAMPLES / "story_openings.txt").prompts
    assert len(set(prompts)) == len(prompts) >= 128
