"""A tracker that raises is switched off with one warning; the run, its checkpoints and the other trackers go on."""

from __future__ import annotations

import tomllib
import warnings

import pytest

from lmrl.config import build, refuse_unread
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager, PluginWarning
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.sft import SFTConfig, sft
from lmrl.training.checkpoint import list_checkpoints

TRACKERS = """
from dataclasses import dataclass
from lmrl import TrackerSpec, hookimpl

class Recorder:
    def __init__(self, folder, first_update, fails=""):
        self.folder, self.fails = folder, fails
        self.note("build")

    def note(self, method):
        with open(self.folder / f"{self.fails or 'sound'}.txt", "a") as file:
            file.write(f"{method}\\n")
        if method == self.fails:
            raise ConnectionError(f"no server in {method}")

    def scalars(self, update, metrics):
        self.note("scalars")
        metrics.clear()  # what a tracker does to its metrics is nobody else's concern

    def texts(self, update, name, texts):
        self.note("texts")

    def histogram(self, update, name, values):
        self.note("histogram")

    def close(self):
        self.note("close")

@dataclass
class Settings:
    name: str = "named"
    every: int | None = 2

class Named(Recorder):
    def __init__(self, settings, folder, first_update):
        super().__init__(folder, first_update)
        (folder / "settings.txt").write_text(f"{settings.name} {settings.every} {first_update}")

@hookimpl
def lmrl_trackers():
    yield TrackerSpec("named", Named, "A tracker with settings", Settings)
    yield TrackerSpec("sound", Recorder)
    for method in ("build", "scalars", "texts", "histogram", "close"):
        yield TrackerSpec(f"bad_{method}", lambda folder, first, method=method: Recorder(folder, first, method))
    yield TrackerSpec("nothing", lambda folder, first: None)
    yield TrackerSpec("another", lambda: None)
"""
METHODS = ["build", "scalars", "texts", "histogram", "close"]


@pytest.fixture
def plugins(tmp_path):
    file = tmp_path / "trackers.py"
    file.write_text(TRACKERS, encoding="utf-8")
    return PluginManager([file])


def train(tiny_folder, folder, plugins, *trackers, **tables):
    """Run three small updates, and return the result with the plugins' warnings."""
    config = build(
        RLConfig,
        {
            "model": str(tiny_folder),
            "run": {"folder": str(folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 3, "prompts_per_update": 4},
            "optimizer": {"name": "reinforce"},
            "evaluation": {"every": 1, "prompts": 2},
            "checkpoint": {"every": 1, "keep": 10},
            "trackers": list(trackers),
            "tracker": tables,
        },
    )
    prompts = ["the cat", "a dog", "the dog sat", "a cat ran", "the", "a"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = rl(
            config,
            reward=lambda prompts, responses: [1.0] * len(prompts),
            prompts=prompts,
            plugins=plugins,
            progress=False,
        )
    return result, [str(one.message) for one in caught if one.category is PluginWarning]


@pytest.mark.parametrize("method", METHODS)
def test_a_tracker_that_raises_is_switched_off(method, tiny_folder, tmp_path, plugins):
    folder = tmp_path / "run"
    result, said = train(tiny_folder, folder, plugins, f"bad_{method}", "sound", "tensorboard")
    assert result.updates == 3 and len(list_checkpoints(folder)) == 3
    assert all("rollout/reward" in record for record in read_metrics(folder)[1:])
    [warning] = said
    for part in (
        "trackers (file ",
        f"{method} of the tracker 'bad_{method}'",
        f"ConnectionError: no server in {method}",
    ):
        assert part in warning
    assert "switched off and the run goes on" in warning
    calls = (folder / f"{method}.txt").read_text().split()
    assert calls.count(method) == 1 and calls[-1] == method, "it is called again after it raised"
    sound = (folder / "sound.txt").read_text().split()
    assert sound.count("scalars") == 4 and sound[-1] == "close" and list((folder / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nothing", "TypeError: None has no scalars, texts, histogram, close; expected a"),
        ("another", "takes 0 positional arguments but 2 were given"),
    ],
)
def test_what_is_no_tracker_is_switched_off_too(name, error, tiny_folder, tmp_path, plugins):
    result, [warning] = train(tiny_folder, tmp_path / "run", plugins, name)
    assert result.updates == 3 and f"the tracker {name!r}" in warning and error in warning


def test_a_full_disk_under_tensorboard_is_no_end_either(tiny_folder, tmp_path, plugins, monkeypatch):
    from lmrl.training.tracking import TensorBoardTracker

    def full(self, update, metrics):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardTracker, "scalars", full)
    result, [warning] = train(tiny_folder, tmp_path / "run", plugins, "tensorboard")
    assert result.updates == 3 and "No space left on device" in warning and "tracker 'tensorboard'" in warning


def test_ctrl_c_in_a_tracker_passes(tiny_folder, tmp_path, plugins, monkeypatch):
    from lmrl.training.tracking import TensorBoardTracker

    def pressed(self, update, metrics):
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorBoardTracker, "scalars", pressed)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_folder, tmp_path / "run", plugins, "tensorboard")


@pytest.mark.parametrize("method", METHODS)
def test_the_supervised_stages_go_on_too(method, tiny_folder, tmp_path, plugins):
    folder = tmp_path / "run"
    table = {
        "model": str(tiny_folder),
        "run": {"folder": str(folder), "device": "cpu"},
        "train": {"steps": 2, "examples_per_step": 2},
        "data": {"held_out": 0},
        "trackers": [f"bad_{method}", "sound"],
    }
    rows = [{"prompt": "the cat", "completion": " ran home"}, {"prompt": "a dog", "completion": " sat"}] * 4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = sft(build(SFTConfig, table), examples=rows, plugins=plugins, progress=False)
    said = [str(one.message) for one in caught if one.category is PluginWarning]
    assert result.steps == 2 and list_checkpoints(folder)
    assert len(said) == (f"{method}\n" in (folder / f"{method}.txt").read_text())
    assert (folder / "sound.txt").read_text().split()[-1] == "close"


@pytest.mark.parametrize(("table", "found"), [({}, "named 2 None"), ({"name": "x", "every": "none"}, "x None None")])
def test_a_tracker_has_settings(table, found, tiny_folder, tmp_path, plugins):
    _, said = train(tiny_folder, tmp_path / "run", plugins, "named", "sound", named=table)
    assert (tmp_path / "run" / "settings.txt").read_text() == found and not said
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    resolved_table = build(RLConfig, written).tracker.built("named", plugins)
    assert f"{resolved_table.name} {resolved_table.every} None" == found and "sound" not in str(written["tracker"])


@pytest.mark.parametrize(
    ("trackers", "tables", "message"),
    [
        (
            ["named"],
            {"named": {"evry": 3}},
            r"'tracker.named.evry'; did you mean 'tracker.named.every'",
        ),
        (["named"], {"named": {"every": "x"}}, r'tracker.named.every is "x"'),
        (["sound"], {"sound": {"every": 3}}, r"unknown setting 'tracker.sound.every'. Nothing can be set in"),
        (["sound"], {"nmed": {"every": 3}}, r"unknown tracker 'nmed'; did you mean 'named'"),
        (["sound"], {"name": "named"}, r"unknown setting 'tracker.name'; \[tracker\] holds the tables"),
    ],
)
def test_a_wrong_setting_of_a_tracker_leaves_no_folder(trackers, tables, message, tiny_folder, tmp_path, plugins):
    with pytest.raises(SettingsError, match=message):
        train(tiny_folder, tmp_path / "run", plugins, *trackers, **tables)
    assert not (tmp_path / "run").exists()


def test_the_settings_of_a_tracker_that_is_not_named_are_refused_on_the_command_line(plugins):
    config = build(RLConfig, {"tracker": {"named": {"every": 3}}})
    with pytest.raises(SettingsError, match=r"tracker.named.every .* only with trackers naming named"):
        refuse_unread(config, plugins, ["tracker.named.every"])
    refuse_unread(build(RLConfig, {**PLAIN, "trackers": ["named"]}), plugins, ["tracker.named.every"])


PLAIN = {"tracker": {"named": {"every": 3}}}
