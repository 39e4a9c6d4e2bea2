"""Plugins are loaded one by one: what is sound works, what is broken is shown and takes nothing else down."""

from __future__ import annotations

import warnings

import pytest

from lmrl.errors import PluginError, SettingsError
from lmrl.plugins import PluginManager, PluginWarning

BROKEN = {
    "import": ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "misspelt": (
        "@hookimpl\ndef lmrl_optimisers():\n    return []",
        "unknown hook 'lmrl_optimisers'; did you mean 'lmrl_optimizers'?",
    ),
    "unmarked": ("def lmrl_rewards():\n    return []", "lmrl_rewards has a hook's name but no mark"),
    "hookless": ("x = 1", "implements no hook"),
    "argument": (
        "@hookimpl\ndef lmrl_step_end(run, metric):\n    pass",
        "unknown argument of the hook lmrl_step_end: 'metric'; did you mean 'metrics'?",
    ),
    "type": (
        "@hookimpl\ndef lmrl_rewards():\n    yield 'brief'",
        "'brief' of type str; expected an iterable of",
    ),
    "kind": (
        "@hookimpl\ndef lmrl_engines():\n    yield RewardSpec('r', len, Settings)",
        "expected an iterable of lmrl.plugins.specs.EngineSpec",
    ),
    "single": (
        "@hookimpl\ndef lmrl_rewards():\n    return RewardSpec('r', len, Settings)",
        "yield each record",
    ),
    "none": ("@hookimpl\ndef lmrl_rewards():\n    RewardSpec('r', len, Settings)", "lmrl_rewards returned None"),
    "raises": (
        "@hookimpl\ndef lmrl_rewards():\n    yield RewardSpec('r', len, Settings)\n    raise OSError('disk')",
        "OSError: disk (raises.py:",
    ),
    "settings": ("@hookimpl\ndef lmrl_rewards():\n    yield RewardSpec('r', len, dict)", "expected a dataclass type"),
    "build": ("@hookimpl\ndef lmrl_rewards():\n    yield RewardSpec('r', 3, Settings)", "not callable"),
    "name": ("@hookimpl\ndef lmrl_rewards():\n    yield RewardSpec('name', len, Settings)", "the name 'name'"),
    "dots": ("@hookimpl\ndef lmrl_rewards():\n    yield RewardSpec('a.b', len, Settings)", "the name 'a.b'"),
    "twice": (
        "@hookimpl\ndef lmrl_rewards():\n    for _ in 'ab':\n        yield RewardSpec('r', len, Settings)",
        "two records with the name 'r'",
    ),
}


def info(manager, name):
    return next(one for one in manager.listing() if one.name == name)


def test_a_sound_plugin_is_offered_by_name(make_fake, reward_source):
    manager = PluginManager(entry_points=[make_fake("good", reward_source("brief"), version="2.1")])
    assert manager.get("reward", "brief").summary == "a reward"
    assert "brief" in manager.rewards() and "length" in manager.rewards()
    found = info(manager, "good")
    assert (found.distribution, found.version, found.status, found.error) == ("fake-good", "2.1", "loaded", "")
    assert found.offers == {"reward": ("brief",)} and found.source == "entry point good = fake_module"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_shown_and_the_others_work(name, make_fake, reward_source):
    source, message = BROKEN[name]
    points = [make_fake(name, source), make_fake("good", reward_source("brief"))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager = PluginManager(entry_points=points)
    found = info(manager, name)
    assert found.status == "failed" and not found.offers and message in found.error
    assert (found.distribution, found.version) == (f"fake-{name}", "1.0")
    assert manager.get("reward", "brief")
    with pytest.raises(SettingsError) as caught:
        manager.get("reward", "brif")
    assert "did you mean 'brief'?" in str(caught.value) and f"{name} (fake-{name} 1.0)" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_strict_raises(name, make_fake, monkeypatch):
    source, message = BROKEN[name]
    with pytest.raises(PluginError) as caught:
        PluginManager(entry_points=[make_fake(name, source)], strict=True)
    assert message in str(caught.value) and f"LMRL_DISABLE_PLUGINS={name}" in str(caught.value)
    assert ".." not in str(caught.value)
    monkeypatch.setenv("LMRL_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError):
        PluginManager(entry_points=[make_fake(name, source)])
    assert info(PluginManager(entry_points=[make_fake(name, source)], strict=False), name).status == "failed"


def test_ctrl_c_while_loading_passes(make_fake):
    with pytest.raises(KeyboardInterrupt):
        PluginManager(entry_points=[make_fake("slow", "raise KeyboardInterrupt")])


def test_the_strict_variable_is_checked(monkeypatch):
    monkeypatch.setenv("LMRL_STRICT_PLUGINS", "maybe")
    with pytest.raises(SettingsError, match="LMRL_STRICT_PLUGINS is 'maybe'; expected 1 or 0"):
        PluginManager(entry_points=[])


def test_a_disabled_plugin_is_not_imported(make_fake, reward_source, monkeypatch):
    points = [make_fake("good", reward_source("brief")), make_fake("other", reward_source("long"))]
    monkeypatch.setenv("LMRL_DISABLE_PLUGINS", "good, ")
    manager = PluginManager(entry_points=points)
    assert info(manager, "good").status == "disabled" and not points[0].loads
    assert "long" in manager.rewards()
    with pytest.raises(SettingsError, match=r"unknown reward 'brief'.*Disabled plugins: good \(fake-good 1.0\)"):
        manager.get("reward", "brief")
    assert "brief" in PluginManager(entry_points=points, disabled=[]).rewards()


def test_disabling_what_is_not_installed_is_said(make_fake, reward_source):
    points = [make_fake("good", reward_source("brief"))]
    with pytest.warns(PluginWarning, match="no installed plugin is called 'god'.*did you mean 'good'"):
        PluginManager(entry_points=points, disabled=["god"])
    with pytest.raises(PluginError, match="'god'"):
        PluginManager(entry_points=points, disabled=["god"], strict=True)


def test_two_plugins_with_one_name_are_an_error_that_names_both(make_fake, reward_source):
    points = [
        make_fake("first", reward_source("brief"), "alpha", "1.0"),
        make_fake("second", reward_source("brief"), "beta", "2.0"),
    ]
    manager = PluginManager(entry_points=points)
    with pytest.raises(PluginError) as caught:
        manager.get("reward", "brief")
    for part in ("reward 'brief'", "first (alpha 1.0)", "second (beta 2.0)", "LMRL_DISABLE_PLUGINS=second"):
        assert part in str(caught.value)
    assert manager.optimizers() == {} and len(manager.conflicts()) == 1 and "length" in manager.rewards()
    with pytest.raises(PluginError, match="brief"):
        PluginManager(entry_points=points, strict=True)
    assert "brief" in PluginManager(entry_points=points, disabled=["second"]).rewards()


def test_a_conflict_with_the_core_names_the_core(make_fake, reward_source):
    manager = PluginManager(entry_points=[make_fake("mine", reward_source("length"))])
    with pytest.raises(PluginError, match=r"'length': lmrl \(lmrl .*\) and mine \(fake-mine 1.0\)"):
        manager.get("reward", "length")


def test_two_distributions_may_use_one_entry_point_name(make_fake, reward_source):
    points = [make_fake("same", reward_source("a"), "alpha"), make_fake("same", reward_source("b"), "beta")]
    assert {"a", "b"} <= set(PluginManager(entry_points=points).rewards())


def test_a_manager_leaves_nothing_behind(make_fake, reward_source):
    PluginManager(entry_points=[make_fake("good", reward_source("brief"))])
    assert "brief" not in PluginManager(entry_points=[]).rewards()


def test_unknown_kinds_are_named():
    with pytest.raises(SettingsError, match="did you mean 'optimizer'"):
        PluginManager(entry_points=[]).get("optimiser", "x")


def test_the_core_offers_its_own():
    manager = PluginManager(entry_points=[])
    assert {"lexicon", "pattern", "length", "numeric_answer"} <= set(manager.rewards())
    assert "transformers" in manager.engines() and "tensorboard" in manager.trackers()
    assert {"file", "stories"} <= set(manager.datasets()) and "TextGen-v0" in manager.environments()
    assert {"rl", "plugins", "config", "quickstart"} <= set(manager.commands())


def test_the_first_party_optimizers_come_through_entry_points():
    manager = PluginManager()
    sources = {name: one.source for one in manager.listing() for name in one.offers.get("optimizer", ())}
    assert set(sources) >= {"ppo", "reinforce"}
    assert all(source.startswith("entry point") for source in sources.values())


def test_environments_are_registered_once(make_fake):
    import gymnasium

    source = "@hookimpl\ndef lmrl_environments():\n    yield EnvironmentSpec('Fake/Plugin-v0', 'nowhere:Nothing')"
    manager = PluginManager(entry_points=[make_fake("world", source)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            manager.register_environments()
            manager.register_environments()
        assert gymnasium.spec("Fake/Plugin-v0").entry_point == "nowhere:Nothing"
    finally:
        gymnasium.registry.pop("Fake/Plugin-v0", None)
