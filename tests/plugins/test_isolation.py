"""Each kind of plugin is isolated in the same way: a conflict or a defect stops nothing that does not use it."""

from __future__ import annotations

import json
import warnings

import gymnasium
import pytest

from lmrl.cli.main import main
from lmrl.config import build
from lmrl.errors import PluginError, SettingsError
from lmrl.plugins import PluginManager
from lmrl.plugins.records import KINDS
from lmrl.stages.rl import RLConfig

RECORDS = {
    "optimizer": "OptimizerSpec({name!r}, len, Settings)",
    "reward": "RewardSpec({name!r}, len, Settings)",
    "engine": "EngineSpec({name!r}, len, Settings)",
    "dataset": "DatasetSpec({name!r}, len, Settings)",
    "prompt_sampler": "PromptSamplerSpec({name!r}, len, Settings)",
    "environment": "EnvironmentSpec({name!r}, 'nowhere:Nothing')",
    "benchmark": "BenchmarkSpec({name!r}, 'nowhere.toml')",
    "suite_kind": "SuiteKindSpec({name!r}, len)",
    "command": "CommandSpec({name!r}, lambda parser: None, lambda arguments: 0)",
    "tracker": "TrackerSpec({name!r}, lambda folder, first: None)",
}
CORE = {
    "reward": "length",
    "engine": "transformers",
    "dataset": "stories",
    "prompt_sampler": "shuffled",
    "environment": "TextGen-v0",
    "command": "rl",
    "tracker": "tensorboard",
}
"""A name that lmrl itself offers, of each kind that it offers itself."""
TWIN = "twin"


def source(kind, *names):
    """Return the source of a plugin that offers records of a kind."""
    lines = "".join(f"    yield {RECORDS[kind].format(name=name)}\n" for name in names)
    return f"@hookimpl\ndef {KINDS[kind].hook}():\n{lines}"


@pytest.fixture
def files(tmp_path):
    """Write plugin files and return the options that load them."""
    header = (
        "from dataclasses import dataclass\nfrom lmrl import *\n"
        "from lmrl.plugins.specs import *\n\n@dataclass\nclass Settings:\n    size: int = 1\n\n"
    )

    def write(**sources):
        options = []
        for name, text in sources.items():
            path = tmp_path / f"{name}.py"
            path.write_text(header + text, encoding="utf-8")
            options += ["--plugin", str(path)]
        return options

    return write


@pytest.fixture(autouse=True)
def registry():
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def test_every_kind_is_tested():
    assert set(RECORDS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_two_plugins_offer_is_an_error_only_where_it_is_used(kind, make_fake):
    points = [
        make_fake("first", source(kind, TWIN, "one")),
        make_fake("second", source(kind, "two", TWIN), version="2.0"),
    ]
    manager = PluginManager(entry_points=points)
    manager.register_environments()
    assert {"one", "two"} <= set(manager.records(kind)) and TWIN not in manager.records(kind)
    assert manager.get(kind, "one").name == "one" and {TWIN, "one", "two"} <= set(manager.names(kind))
    with pytest.raises(PluginError) as caught:
        manager.get(kind, TWIN)
    for part in (f"offer the {kind} {TWIN!r}", "first (fake-first 1.0)", "second (fake-second 2.0)"):
        assert part in str(caught.value)
    assert manager.conflicts() == [str(caught.value)]
    assert [info.status for info in manager.listing()] == ["loaded"] * 3
    for other in set(KINDS) - {kind}:
        assert TWIN not in manager.names(other)


@pytest.mark.parametrize("kind", CORE)
def test_a_name_of_lmrls_own_can_be_in_conflict_too(kind, make_fake):
    manager = PluginManager(entry_points=[make_fake("mine", source(kind, CORE[kind]))])
    with pytest.raises(PluginError, match=r"lmrl \(lmrl .*\) and mine \(fake-mine 1.0\)"):
        manager.get(kind, CORE[kind])
    for other, name in CORE.items():
        assert other == kind or manager.get(other, name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_works_beside_a_conflict_and_shows_it(kind, files, capsys):
    options = files(first=source(kind, TWIN), second=source(kind, TWIN))
    assert main(["config", "train", *options]) == 0
    assert main(["--help", *options]) == 0
    capsys.readouterr()
    assert main(["plugins", "--json", *options]) == 0
    [conflict] = json.loads(capsys.readouterr().out)["conflicts"]
    assert f"offer the {kind} {TWIN!r}: first (file " in conflict and "second (file " in conflict


USES = {
    "optimizer": ["rl", "optimizer.name=twin"],
    "reward": ["rl", "reward.name=twin"],
    "engine": ["rl", "engine.name=twin"],
    "dataset": ["rl", "prompts.name=twin"],
    "tracker": ["rl", "trackers=['twin']", "prompts.name=stories"],
    "benchmark": ["bench", "run", "twin"],
    "command": ["twin"],
}


@pytest.mark.parametrize("kind", USES)
def test_a_command_that_uses_the_name_says_who_offers_it(kind, files, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = files(first=source(kind, TWIN), second=source(kind, TWIN))
    assert main([*USES[kind], *options]) == 2
    said = capsys.readouterr().err
    assert f"error: 2 plugins offer the {kind} 'twin': first (file " in said and "second (file " in said
    assert not (tmp_path / "runs").exists()


def test_an_environment_that_two_plugins_offer_is_an_error_when_it_is_made(make_fake):
    points = [make_fake(name, source("environment", "Twin-v0")) for name in ("first", "second")]
    PluginManager(entry_points=points).register_environments()
    with pytest.raises(PluginError, match="2 plugins offer the environment 'Twin-v0'"):
        gymnasium.make("Twin-v0")
    with pytest.raises(PluginError, match=r"first .* and second"):
        gymnasium.make_vec("Twin-v0", num_envs=2)
    PluginManager(entry_points=points[:1]).register_environments()
    assert gymnasium.spec("Twin-v0").entry_point == "nowhere:Nothing"


@pytest.mark.parametrize("name", ["two words", "a/b/c", "", "Brackets(1)-v0", "ends/", "name\n-v0", 3, None])
def test_an_environment_id_that_gymnasium_refuses_stops_nothing_else(name, make_fake, reward_source, files, capsys):
    bad = source("environment", name)
    manager = PluginManager(entry_points=[make_fake("bad", bad), make_fake("good", reward_source("brief"))])
    manager.register_environments()
    [failed] = [info for info in manager.listing() if info.status == "failed"]
    assert failed.name == "bad" and repr(name) in failed.error and manager.get("reward", "brief")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("CartPole-v1", "the id is taken by gymnasium"), ("Versionless", "versioned"), ("CartPole", "versioned")],
)
def test_an_environment_that_cannot_be_registered_is_listed(name, reason, make_fake, files, capsys):
    gymnasium.register("Versionless-v1", entry_point="somewhere:Else")
    manager = PluginManager(entry_points=[make_fake("world", source("environment", name, "Fine-v0"))])
    manager.register_environments()
    [said] = manager.conflicts()
    assert f"the environment {name!r} of world (fake-world 1.0) is not registered" in said and reason in said
    assert "Fine-v0" in gymnasium.registry and gymnasium.spec("CartPole-v1").entry_point.startswith("gymnasium")
    options = files(world=source("environment", name))
    assert main(["config", "train", *options]) == 0
    capsys.readouterr()
    assert main(["plugins", *options]) == 0 and "is not registered" in capsys.readouterr().out


def test_ids_of_gymnasiums_own_forms_are_registered(make_fake):
    names = ["Plain-v0", "space/Name-v12", "dots.in:name-v3", "NoVersion9"]
    manager = PluginManager(entry_points=[make_fake("world", source("environment", *names))])
    manager.register_environments()
    assert all(gymnasium.spec(name) for name in names) and not manager.conflicts()


def test_a_table_of_a_conflicting_name_that_is_not_chosen_is_kept(make_fake):
    points = [make_fake(name, source("optimizer", TWIN, f"{name}_own")) for name in ("first", "second")]
    manager = PluginManager(entry_points=points)
    tables = {"name": "first_own", TWIN: {"size": 3}}
    choice = build(RLConfig, {"optimizer": tables}).optimizer.resolved(manager)
    assert choice.tables == {"first_own": {"size": 1}, TWIN: {"size": 3}}
    with pytest.raises(PluginError, match="2 plugins offer"):
        build(RLConfig, {"optimizer": {"name": TWIN}}).optimizer.resolved(manager)
    with pytest.raises(SettingsError, match=r"optimizer.name: unknown optimizer 'twins'; did you mean 'twin'"):
        build(RLConfig, {"optimizer": {"name": "twins"}}).optimizer.resolved(manager)


ODD = {
    "a base exception": "class Odd(BaseException): pass\nraise Odd('gone')",
    "a cancelled task": "import asyncio\nraise asyncio.CancelledError",
    "a generator's end": "raise GeneratorExit",
    "a skipped test": "import pytest\npytest.skip('not here', allow_module_level=True)",
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_whatever_a_plugin_raises_is_its_own(text, make_fake, reward_source):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager = PluginManager(entry_points=[make_fake("odd", text), make_fake("good", reward_source("brief"))])
    assert [info.status for info in manager.listing()] == ["loaded", "loaded", "failed"]
    assert manager.get("reward", "brief")


def test_an_observer_that_takes_metrics_away_takes_only_its_own(make_fake):
    taker = "@hookimpl\ndef lmrl_step_end(metrics):\n    metrics.clear()"
    keeper = "seen = []\n@hookimpl\ndef lmrl_step_end(metrics):\n    seen.append(metrics)"
    manager = PluginManager(entry_points=[make_fake("a_taker", taker), make_fake("b_keeper", keeper)])
    metrics = {"reward": 1.0}
    manager.observe("lmrl_step_end", run=None, step=1, metrics=metrics)
    assert metrics == {"reward": 1.0} and manager._plugins[-1].module.seen == [{"reward": 1.0}]


SPECS = {
    "a default outside its Literal": (
        "from typing import Literal\n@dataclass\nclass S:\n    mode: Literal['a', 'b'] = 'c'",
        "RewardSpec('r', len, S)",
        "in the settings of 'r', the default of mode is \"c\" (a string); expected one of",
    ),
    "a default of another type": (
        "@dataclass\nclass S:\n    size: int = '3'",
        "RewardSpec('r', len, S)",
        'the default of size is "3" (a string); expected an integer',
    ),
    "a nested default": (
        "@dataclass\nclass I:\n    x: float = 'a'\n@dataclass\nclass S:\n    inner: I = field(default_factory=I)",
        "RewardSpec('r', len, S)",
        'the default of inner.x is "a"',
    ),
    "a type that TOML cannot hold": (
        "@dataclass\nclass S:\n    sizes: set[int] = field(default_factory=set)",
        "RewardSpec('r', len, S)",
        "which a configuration cannot hold",
    ),
    "an annotation that means nothing": (
        "@dataclass\nclass S:\n    size: 'Nothing' = 3",
        "RewardSpec('r', len, S)",
        "cannot be read: NameError",
    ),
    "a summary that is no text": ("", "RewardSpec('r', len, Settings, None)", "of 'r', summary is None"),
    "needs of another type": ("", "OptimizerSpec('o', len, Settings, {'values': True})", "needs is {'values': True}"),
    "a need that is no boolean": (
        "",
        "OptimizerSpec('o', len, Settings, Needs(values='yes'))",
        'needs.values is "yes"',
    ),
    "a kind of experience": (
        "",
        "OptimizerSpec('o', len, Settings, Needs(experience='dreams'))",
        "needs.experience is",
    ),
    "a concurrency": ("", "RewardSpec('r', len, Settings, '', 'processes')", 'did you mean "process"?'),
    "a path that is no text": ("", "BenchmarkSpec('b', 3)", "of 'b', path is 3"),
    "an entry point that is no text": ("", "EnvironmentSpec('E-v0', len)", "of 'E-v0', entry_point is"),
    "settings of a tracker": ("", "TrackerSpec('t', len, '', dict)", "expected a dataclass type"),
}
HOOK_OF = {KINDS[kind].record.__name__: KINDS[kind].hook for kind in KINDS}


@pytest.mark.parametrize(("classes", "record", "message"), SPECS.values(), ids=SPECS)
def test_a_record_or_settings_of_a_wrong_type_stop_only_their_plugin(
    classes, record, message, make_fake, reward_source
):
    hook = HOOK_OF[record.partition("(")[0]]
    text = f"from dataclasses import field\n{classes}\n@hookimpl\ndef {hook}():\n    yield {record}"
    manager = PluginManager(entry_points=[make_fake("bad", text), make_fake("good", reward_source("brief"))])
    [failed] = [info for info in manager.listing() if info.status == "failed"]
    assert failed.name == "bad" and message in failed.error and manager.get("reward", "brief")
    with pytest.raises(PluginError, match="the plugin bad"):
        PluginManager(entry_points=[make_fake("bad", text)], strict=True)


def test_a_distribution_with_broken_metadata_stops_nothing(make_fake, reward_source):
    class Broken:
        @property
        def name(self):
            raise KeyError("Name")

    point = make_fake("odd", reward_source("odd"))
    broken = type(point)(point.name, point.source, Broken())
    manager = PluginManager(entry_points=[broken, make_fake("good", reward_source("brief"))])
    assert manager.get("reward", "brief") and manager.get("reward", "odd")
