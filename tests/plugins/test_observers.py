"""Observers cannot harm a run, nor each other."""

from __future__ import annotations

import warnings

import pytest

from lmrl.plugins import PluginManager, PluginWarning

RECORDER = """
seen = []
@hookimpl
def lmrl_step_end(step, metrics):
    seen.append((step, metrics["reward"]))
@hookimpl
def lmrl_run_end(run, error):
    run.append("ended")
"""
RAISING = "@hookimpl\ndef lmrl_step_end(run, step, metrics):\n    raise ValueError(f'bad {step}')"


def step(manager, number):
    manager.observe("lmrl_step_end", run=None, step=number, metrics={"reward": 0.5})


def test_observers_get_the_arguments_they_ask_for(make_fake):
    manager = PluginManager(entry_points=[make_fake("recorder", RECORDER)])
    step(manager, 1)
    run: list[str] = []
    manager.observe("lmrl_run_end", run=run, error=None)
    assert manager._plugins[-1].module.seen == [(1, 0.5)] and run == ["ended"]
    assert manager.listing()[-1].observes == ("lmrl_run_end", "lmrl_step_end")


def test_one_that_raises_is_warned_about_once_and_the_others_run(make_fake):
    points = [make_fake("a_raising", RAISING), make_fake("b_recorder", RECORDER), make_fake("c_raising", RAISING)]
    manager = PluginManager(entry_points=points)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(manager, 1)
        step(manager, 2)
    texts = [str(warning.message) for warning in caught if warning.category is PluginWarning]
    assert len(texts) == 2 and "a_raising (fake-a_raising 1.0)" in texts[0] and "ValueError: bad 1" in texts[0]
    recorder = next(plugin for plugin in manager._plugins if plugin.name == "b_recorder")
    assert recorder.module.seen == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit"])
def test_ctrl_c_passes(error, make_fake):
    source = f"@hookimpl\ndef lmrl_step_end(step):\n    raise {error}"
    manager = PluginManager(entry_points=[make_fake("stops", source)])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        step(manager, 1)


def test_only_observer_hooks_are_observed():
    with pytest.raises(ValueError, match="did you mean 'lmrl_step_end'"):
        PluginManager(entry_points=[]).observe("lmrl_steps_end")
