"""Settings that nothing reads: an error on the command line, a counted note in a recipe."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest

from lmrl.cli.recipes import STAGE_CONFIGS, read_config
from lmrl.config import apply_overrides, build, select_by_path, unread, unread_note
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager

UNREAD = {
    "rl": [
        ("optimizer.grpo.clip_range=0.3", "optimizer.name=grpo"),
        ("optimizer.name=ppo optimizer.dpo.beta=1", "optimizer.name=dpo"),
        ("prompts.file.limit=3", "prompts.name=file"),
        ("prompts.file.path=x.jsonl prompts.name=stories", "prompts.name=file"),
        ("prompts.name=file prompts.file.path=x prompts.stories.count=3", "prompts.name=stories"),
        ("reward.length.maximum=9", "reward.name=length"),
        ("reward.name=length reward.length.cost=1", "mode=linear"),
        ("reward.name=learned reward.learned.coefficient=2", "aggregation=uncertainty"),
        ("reward_weights.length=1 reward.repetition.n=2", "reward_weights.repetition"),
        ("reward_weights.length=1 reward.name=repetition", "reward_weights left out"),
        ("engine.best_of_n.n=4", "engine.name=best_of_n"),
        ("kl.target=3", "kl.controller=adaptive"),
        ("kl.horizon=30", "kl.controller=adaptive"),
        ("kl.beta=0 kl.estimator=k3", "kl.beta above 0"),
        ("optimizer.name=dpo kl.beta=0.1", "optimizer.name of one that samples"),
        ("optimizer.name=kto train.group_size=4", "optimizer.name of one that samples"),
        ("data.pairs=best_worst", "optimizer.name of one that learns from pairs"),
        ("data.limit=10", "optimizer.name of one that learns from data"),
        ("optimizer.name=kto data.pairs=best_worst", "optimizer.name of one that learns from pairs"),
        ("optimizer.name=reinforce train.value_learning_rate=1e-3", "a value function"),
        ("optimizer.name=rloo train.separate_critic=true", "a value function"),
        ("optimizer.name=grpo train.resamples=5", "dynamic sampling"),
        ("train.microbatch_tokens=9 train.microbatch_memory=2", "train.microbatch_tokens=0"),
        ("optimizer.name=grpo train.critic_warmup_updates=3", "a value function"),
        ("replay.window=3", "replay.share above 0"),
        ("optimizer.name=dpo data.path=x replay.share=0.5", "optimizer.name of one that samples"),
        ("optimizer.name=dpo data.path=x prompt_sampler.name=difficulty", "optimizer.name of one that samples"),
        ("prompt_sampler.curriculum.pace=3", "prompt_sampler.name=curriculum"),
        ("auxiliary.rows=3", "auxiliary.weight above 0"),
        ("auxiliary.weight=1 auxiliary.data.path=x auxiliary.optimizer.imitation.epochs=2", "optimizer.name=imitation"),
        ("scoring.concurrency=none scoring.workers=2", "scoring.concurrency=thread"),
        ("evaluation.prompts=0 evaluation.every=5", "evaluation.prompts above 0"),
        ("evaluation.prompts=0 evaluation.show=5", "evaluation.prompts above 0"),
        ("optimizer.name=dpo evaluation.prompts=0 reward.name=length", "evaluation.prompts above 0"),
        ("optimizer={name='ppo',grpo={clip_range=0.3}}", "optimizer.name=grpo"),
        ("optimizer.name=grpo optimizer.grpo.overlong_buffer=3", "overlong_length above 0"),
    ],
    "sft": [
        ("adapter.rank=8", "adapter.method=lora"),
        ('adapter.target_modules=["q_proj"]', "adapter.method=lora"),
        ("train.epochs=1 train.steps=3", "train.epochs=0"),
        ("train.schedule=constant train.final_share=0.5", "train.schedule=linear"),
        ("data.held_out_path=x data.held_out=0.2", "data.held_out_path left out"),
        ("data.held_out=0 samples.prompts=2", "data.held_out above 0"),
        ("samples.prompts=0 sampling.temperature=0.5", "samples.prompts above 0"),
        ("sampling.temperature=0 sampling.top_p=0.9", "sampling.temperature above 0"),
        ("data.path={file} data.split=test", "data.path set to a folder"),
        ("data.chat=off data.turns=last", "data.chat=auto or on"),
    ],
    "prefer": [
        ("annotators.me.kind=person annotators.me.reward=length", "annotators.me.kind=reward"),
        ("annotators.me.judge.model=x", "annotators.me.kind=judge"),
        ("annotators.me.kind=judge annotators.me.tolerance=1", "annotators.me.kind=reward"),
        ("annotators.me.kind=judge annotators.me.judge.timeout=5", "annotators.me.judge.base_url set"),
        ("annotators.me.kind=judge annotators.me.judge.temperature=1", "annotators.me.judge.answer=text"),
        ("gold.tolerance=0.1", "gold.reward set"),
        ("gold.settings.n=2", "gold.reward set"),
        ("completions_from.limit=3", "completions_from.path set"),
        ("completions_from.path=x samples.per_prompt=3", "completions_from.path left out"),
        ("completions_from.path=x sampling.temperature=2", "completions_from.path left out"),
        ("prompts.file.column=x", "prompts.name=file"),
        ("engine.best_of_n.n=4", "engine.name=best_of_n"),
        ("chat=on prompts.name=file prompts.file.path=x prompts.file.chat=off", "chat=auto"),
    ],
    "reward": [
        ("normalise.reference=x", "normalise.on=samples"),
        ("normalise.sampling.temperature=1", "normalise.on=samples"),
        ("normalise.on=off normalise.count=9", "normalise.on=data or samples"),
        ("data.held_out=0 train.evaluate_every=5", "data.held_out above 0"),
        ("train.schedule=constant train.final_share=0.5", "train.schedule=linear"),
    ],
    "pretrain": [
        ("model.continue_from=x model.layers=3", "model.continue_from left out"),
        ("model.continue_from=x model.config.num_key_value_heads=2", "model.continue_from left out"),
        ("model.continue_from=x tokenizer.vocabulary_size=300", "model.continue_from left out"),
        ("tokenizer.path=x tokenizer.vocabulary_size=300", "tokenizer.path left out"),
        ("tokenizer.kind=bytes tokenizer.vocabulary_size=300", "tokenizer.kind=bpe"),
        ("tokenizer.eos_token=x", "tokenizer.path set"),
        ("clean.rules.min_words=3", "clean.quality=true"),
        ("clean.near_threshold=0.5", "clean.near_duplicates=true"),
        ("clean.min_language_probability=0.7", "clean.languages set"),
        ("corpus.held_out=0 train.evaluate_overlap=0.5", "corpus.held_out above 0"),
        ('corpus.held_out_paths=["x"] corpus.held_out=0.5', "corpus.held_out_paths left out"),
        ("samples.prompts=[] samples.temperature=0.5", "samples.prompts set"),
    ],
    "eval": [
        ('models=["a","b"] wins.judge.model=x', "wins.kind=judge"),
        ('models=["a","b"] wins.kind=none wins.tolerance=1', "wins.kind=reward"),
        ('models=["a"] wins.kind=reward', "two models"),
        ("best_of.samples=8", "best_of.n above 0"),
        ("texts.context=8", "texts.rows.path set"),
        ("texts.rows.limit=8", "texts.rows.path set"),
        ("held_out.prompts=0 held_out.seed=3", "held_out.prompts above 0"),
        ("chat=off system=x", "chat=auto"),
        ("prompts.file.template={x}", "prompts.name=file"),
        ("chat=off prompts.name=file prompts.file.path=x prompts.file.chat=on", "chat=auto"),
        ("rewards=[] on_unreadable=error", "rewards naming one"),
        ("rewards=[] bounds.happy_end=[0,1]", "rewards naming one"),
        ('models=["a","b"] rewards=[] wins.kind=reward', "rewards naming one"),
        ('models=["a","b"] wins.kind=none wins.baseline=a', "wins.kind=reward, judge or person"),
        ("sampling.temperature=0 sampling.top_k=4", "sampling.temperature above 0"),
    ],
}


@pytest.fixture(scope="module")
def plugins():
    manager = PluginManager()
    manager.commands()
    return manager


def config_class(stage):
    module, _, name = STAGE_CONFIGS[stage].partition(":")
    return getattr(import_module(module), name)


def read(stage, overrides, plugins, recipe=None, resume=None):
    arguments = SimpleNamespace(recipe=recipe, overrides=overrides, resume=resume, plugin_manager=plugins)
    return read_config(arguments, config_class(stage))


@pytest.mark.parametrize(("stage", "overrides", "switch"), [(s, *row) for s, rows in UNREAD.items() for row in rows])
def test_on_the_command_line_it_is_an_error_that_names_the_switch(stage, overrides, switch, plugins, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    with pytest.raises(SettingsError) as error:
        read(stage, overrides.replace("{file}", str(file)).split(), plugins)
    *_, last = overrides.split()
    assert switch in str(error.value), str(error.value)
    assert "Set" in str(error.value) and "on the command line" in str(error.value), last


@pytest.mark.parametrize(("stage", "overrides", "switch"), [(s, *row) for s, rows in UNREAD.items() for row in rows])
def test_the_switch_makes_it_read_or_a_recipe_notes_it(stage, overrides, switch, plugins, tmp_path):
    """A recipe with the same content is read, and one line counts what is not read, unless it is the default."""
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    config = build(config_class(stage), apply_overrides({}, overrides.replace("{file}", str(file)).split()))
    note = unread_note(config, plugins)
    assert "\n" not in note
    if note:
        assert "that this run does not read" in note and switch in note


@pytest.mark.parametrize("stage", ["rl", "sft", "prefer", "reward", "pretrain", "eval"])
def test_the_defaults_are_no_news(stage, plugins):
    assert unread_note(config_class(stage)(), plugins) == ""


@pytest.mark.parametrize("stage", ["rl", "sft", "prefer", "reward", "pretrain", "eval"])
def test_every_rule_is_about_a_setting_that_exists(stage, plugins):
    for overrides, _ in UNREAD[stage]:
        config = build(config_class(stage), apply_overrides({}, overrides.replace("{file}", __file__).split()))
        for name in unread(config, plugins):
            value = config
            for part in name.split("."):
                tables = getattr(value, "tables", None)
                if tables is not None:
                    break
                value = value[part] if isinstance(value, dict) else getattr(value, part)


@pytest.mark.parametrize(
    ("stage", "overrides", "section", "name"),
    [
        ("rl", ["prompts.file.path=x.jsonl"], "prompts", "file"),
        ("prefer", ["prompts.file.path=x.jsonl", "prompts.file.limit=3"], "prompts", "file"),
        ("eval", ["prompts.file.path=x.jsonl"], "prompts", "file"),
        ("rl", ["reward.learned.path=runs/reward-1"], "reward", "learned"),
        ("rl", ["reward.lexicon.path=words.txt"], "reward", "lexicon"),
    ],
)
def test_a_path_on_the_command_line_selects_its_plugin(stage, overrides, section, name, plugins, caplog, tmp_path):
    caplog.set_level("INFO", "lmrl")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[{section}]\nname = "{"stories" if section == "prompts" else "length"}"\n')
    for file in (None, str(recipe)):
        caplog.clear()
        assert getattr(read(stage, list(overrides), plugins, file), section).name == name
        assert [f"selects {section}.name={name}" in text for text in caplog.messages] == [True]


def test_a_path_in_a_recipe_selects_nothing(plugins, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[prompts.file]\npath = "x.jsonl"\n[optimizer.grpo]\nclip_range = 0.3\n[optimizer.dpo]\nbeta = 1')
    config = read("rl", [], plugins, str(recipe))
    assert config.prompts.name == "stories"
    note = unread_note(config, plugins)
    assert note.startswith("3 settings are set that this run does not read: prompts.file.path (read with prompts.name")


def test_paths_of_two_plugins_select_neither(plugins):
    with pytest.raises(SettingsError, match=r"reward\.name=learned.*reward\.name=lexicon"):
        read("rl", ["reward.learned.path=a", "reward.lexicon.path=b"], plugins)
    assert select_by_path(config_class("rl"), {"reward": {}}, ["reward.name", "reward.learned.path"]) == []


def test_a_misspelt_plugin_is_still_named(plugins):
    with pytest.raises(SettingsError, match=r"optimizer\.grop.*did you mean"):
        read("rl", ["optimizer.grop.clip_range=0.3"], plugins)
    with pytest.raises(SettingsError, match=r"optimizer\.grpo\.clip_rnage.*did you mean"):
        read("rl", ["optimizer.grpo.clip_rnage=0.3"], plugins)


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("rl", ["optimizer.name=grpo", "optimizer.grpo.clip_range=0.3", "train.group_size=4"]),
        ("rl", ["kl.controller=adaptive", "kl.target=3"]),
        ("rl", ["reward_weights.length=1", "reward.length.maximum=9"]),
        ("rl", ["optimizer.name=dpo", "data.pairs=best_worst", "data.path=x"]),
        ("rl", ["evaluation.prompts=0"]),
        ("sft", ["adapter.method=lora", "adapter.rank=8"]),
        ("prefer", ["annotators.me.kind=judge", "annotators.me.judge.model=x"]),
        ("pretrain", ["model.continue_from=x", "model.context_length=8"]),
        ("eval", ['models=["a","b"]', "wins.kind=judge", "wins.judge.model=x"]),
    ],
)
def test_what_is_read_is_taken(stage, overrides, plugins):
    read(stage, overrides, plugins)
