"""Observers cannot harm a run, nor each other."""

from __future__ import annotations

import warnings

import pytest
import torch

from lmrl.algorithms.rollout import Rollout
from lmrl.algorithms.sequences import Sequences
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


MEDDLING = """
@hookimpl
def lmrl_rollout(rollout):
    {0}
"""


@pytest.mark.parametrize(
    ("write", "field"),
    [
        ("rollout.scores.clamp_(min=0)", "rollout.scores"),
        ("rollout.rewards[0, 0] = 5.0", "rollout.rewards"),
        ("rollout.inputs.ids.zero_()", "rollout.inputs.ids"),
        ("rollout.declared['values'].mul_(2)", "rollout.declared['values']"),
        ("rollout.parts['new'] = rollout.scores", "rollout.parts['new']"),
        ("rollout.declared.clear()", "rollout.declared['values']"),
        ("object.__setattr__(rollout, 'scores', rollout.scores.clone())", "rollout.scores"),
        ("rollout.scores.add_(1); raise ValueError", "rollout.scores"),
    ],
)
def test_one_that_changes_the_rollout_is_named_with_the_field(write, field, make_fake):
    points = [
        make_fake("a_quiet", MEDDLING.format("rollout.scores + 1")),
        make_fake("meddling", MEDDLING.format(write)),
    ]
    manager, made = PluginManager(entry_points=points), rollout()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager.observe("lmrl_rollout", run=None, rollout=made)
        manager.observe("lmrl_rollout", run=None, rollout=rollout())
    texts = [str(warning.message) for warning in caught if warning.category is PluginWarning]
    changes = [text for text in texts if "changed" in text]
    assert len(changes) == 1 and f"meddling (fake-meddling 1.0) changed {field} in lmrl_rollout" in changes[0]
    assert len(texts) == 1 + ("ValueError" in write)


def test_reading_a_rollout_is_no_change(make_fake):
    reads = "(rollout.scores.mean(), rollout.select(rollout.group), rollout.inputs.action_ids, len(rollout))"
    manager = PluginManager(entry_points=[make_fake("reads", MEDDLING.format(reads))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.observe("lmrl_rollout", run=None, rollout=rollout())


def rollout():
    rows, mask = Sequences.of_pairs([([3], [4, 5]), ([3], [6])]), torch.tensor([[True, True], [True, False]])
    numbers, flags = torch.zeros(2, 2), torch.tensor([True, True])
    groups = torch.tensor([0, 0])
    return Rollout(rows, mask, numbers, numbers + 1, torch.ones(2), flags, ~flags, groups, {"values": numbers + 2})
