"""Sections that pick a plugin by name."""

from __future__ import annotations

import tomllib
import types
from dataclasses import dataclass, field

import pytest

from lmrl.config import PluginChoice, build, choice, resolved, to_toml
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager, hookimpl
from lmrl.plugins.specs import OptimizerSpec


@dataclass
class FirstSettings:
    rate: float = 0.1
    steps: int = 4


@dataclass
class SecondSettings:
    depth: int = 2


@dataclass
class Recipe:
    model: str = ""
    optimizer: PluginChoice = choice("optimizer", "first")
    reward: PluginChoice = choice("reward", "length")


@dataclass
class Nested:
    recipe: Recipe = field(default_factory=Recipe)


class Point:
    name, value, dist = "two", "two", None

    def load(self):
        module = types.ModuleType("two")

        @hookimpl
        def lmrl_optimizers():
            yield OptimizerSpec("first", lambda settings: settings, FirstSettings)
            yield OptimizerSpec("second", lambda settings: settings, SecondSettings)

        module.lmrl_optimizers = lmrl_optimizers
        return module


@pytest.fixture(scope="module")
def manager():
    return PluginManager(entry_points=[Point()], disabled=[])


def test_the_default_and_the_chosen_one(manager):
    spec, settings = build(Recipe, {}).optimizer.resolve(manager)
    assert spec.name == "first" and settings == FirstSettings()
    recipe = build(Recipe, {"optimizer": {"name": "second", "second": {"depth": 5}, "first": {"rate": 1}}})
    spec, settings = recipe.optimizer.resolve(manager)
    assert spec.name == "second" and settings == SecondSettings(5)
    assert recipe.optimizer.section == "optimizer"
    assert build(Recipe, {}) == Recipe()
    assert Recipe().optimizer.resolve(manager)[1] == FirstSettings()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "frist"}, r"optimizer.name: unknown optimizer 'frist'; did you mean 'first'\?"),
        ({"secnod": {}}, r"\[optimizer.secnod\]: unknown optimizer 'secnod'; did you mean 'second'\?"),
        ({"first": {"rat": 1}}, r"unknown setting 'optimizer.first.rat'; did you mean 'optimizer.first.rate'"),
        ({"second": {"depth": "x"}}, r"optimizer.second.depth is \"x\""),
    ],
)
def test_every_table_is_checked(table, message, manager):
    with pytest.raises(SettingsError, match=message):
        build(Recipe, {"optimizer": table}).optimizer.resolve(manager)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("second", r'optimizer is "second" \(a string\); expected a table with the key name; write optimizer.name'),
        ({"rate": 1}, r"unknown setting 'optimizer.rate'\. .*its own table, \[optimizer.first\]"),
        ({"nam": "first"}, r"unknown setting 'optimizer.nam'; did you mean 'optimizer.name'\?"),
        ({"name": 3}, r"optimizer.name is 3 \(an integer\); expected the name of one optimizer"),
    ],
)
def test_there_is_one_way_to_write_it(section, message):
    with pytest.raises(SettingsError, match=message):
        build(Recipe, {"optimizer": section})


def test_the_resolved_configuration_is_complete_and_reads_back(manager):
    recipe = build(Recipe, {"optimizer": {"first": {"rate": 1}, "second": {}}, "reward": {"length": {"maximum": 5}}})
    whole = resolved(recipe, manager)
    table = tomllib.loads(to_toml(whole))
    assert table["optimizer"] == {"name": "first", "first": {"rate": 1.0, "steps": 4}, "second": {"depth": 2}}
    assert table["reward"]["length"]["maximum"] == 5 and "mode" in table["reward"]["length"]
    assert build(Recipe, table) == whole == resolved(whole, manager)
    assert resolved(Nested(recipe), manager).recipe == whole
    assert tomllib.loads(to_toml(resolved(Recipe(), manager)))["optimizer"]["first"] == {"rate": 0.1, "steps": 4}


def test_an_imported_reward_keeps_its_table(manager):
    recipe = build(Recipe, {"reward": {"name": "my:reward", "my:reward": {"limit": 3}}})
    assert resolved(recipe, manager).reward.tables == {"my:reward": {"limit": 3}}
    with pytest.raises(SettingsError, match=r"lmrl\.rewards\.resolve builds it"):
        recipe.reward.resolve(manager)


def test_the_recipe_of_the_rl_stage_is_built_from_overrides():
    from lmrl.config import apply_overrides
    from lmrl.stages.rl import RLConfig

    manager = PluginManager()
    config = build(RLConfig, apply_overrides({}, ["optimizer.name=reinforce", "train.learning_rate=1e-5"]))
    assert config.optimizer.resolve(manager)[0].name == "reinforce" and config.train.learning_rate == 1e-5
    whole = resolved(config, manager)
    assert build(RLConfig, tomllib.loads(to_toml(whole))) == whole
