"""What TensorBoard shows of a run, read back with its own loaders: every scalar, and intervals as one chart each."""

import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util import tensor_util

from lmrl.config import build
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.training.tracking import LATER, TensorBoardTracker

PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran", "the", "a"]


def events_of(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def shown_as(folder):
    """Return tags by the dashboard that shows them, as TensorBoard's server finds them."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    [run] = multiplexer.Runs()
    plugins = {}
    for plugin in ("scalars", "histograms", "text", "custom_scalars"):
        try:
            plugins[plugin] = set(multiplexer.PluginRunToTagToContent(plugin).get(run, {}))
        except KeyError:
            plugins[plugin] = set()
    return plugins


def layouts_of(folder):
    events = events_of(folder).Tensors("custom_scalars__config__")
    found = []
    for event in events:
        layout = Layout()
        layout.ParseFromString(tensor_util.make_ndarray(event.tensor_proto).item())
        found.append(layout)
    return found


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorboard") / "run"
    mapping = {
        "model": str(tiny_folder),
        "run": {"folder": str(folder), "device": "cpu"},
        "sampling": {"max_new_tokens": 6},
        "train": {"updates": 2, "prompts_per_update": 4, "learning_rate": 0.01},
        "evaluation": {"every": 1, "prompts": 3},
    }
    reward = lambda prompts, responses: [float(len(response.split())) for response in responses]  # noqa: E731
    rl(build(RLConfig, mapping), reward=reward, prompts=PROMPTS, progress=False)
    return folder


def test_every_scalar_of_a_run_is_found(run):
    accumulator = events_of(run)
    tags = accumulator.Tags()
    for record in read_metrics(run):
        for name, value in record.items():
            if name == "update":
                continue
            assert name in tags["scalars"], name
            found = {event.step: event.value for event in accumulator.Scalars(name)}
            assert found[record["update"]] == pytest.approx(value, rel=1e-5)
    assert "rollout/reward" in tags["scalars"] and "rollout/length" in tags["scalars"]
    assert set(tags["histograms"]) == {"histograms/rollout/rewards", "histograms/rollout/lengths"}
    assert not set(tags["scalars"]) & set(tags["histograms"])


def test_intervals_are_one_chart_each(run):
    [layout] = layouts_of(run)
    [category] = [category for category in layout.category if category.title == "evaluation"]
    charts = {chart.title: chart for chart in category.chart}
    names = {
        name.partition("/")[2] for record in read_metrics(run) for name in record if name.startswith("evaluation/")
    }
    means = {name for name in names if not name.endswith(("_low", "_high"))}
    [pattern] = charts.pop(LATER).multiline.tag
    assert not [name for name in names if re.match(pattern, f"evaluation/{name}")], "a metric is in two charts"
    assert set(charts) == means and {"reward", "kl", "length"} <= means
    for title, chart in charts.items():
        whole = {f"evaluation/{title}{end}" for end in ("", "_low", "_high")}
        if chart.HasField("margin"):
            [series] = chart.margin.series
            assert [series.value, series.lower, series.upper] == [
                f"evaluation/{title}{end}" for end in ("", "_low", "_high")
            ]
        else:
            [pattern] = chart.multiline.tag
            assert {name for name in whole if re.match(pattern, name)} == whole
            assert not re.match(pattern, f"evaluation/{title}_other")


@pytest.mark.parametrize("first", ["scalar", "histogram"])
@pytest.mark.parametrize("name", ["rollout/reward", "loss", "histograms/x"])
def test_a_scalar_and_a_histogram_of_one_name(tmp_path, first, name):
    tracker = TensorBoardTracker(tmp_path)
    for update in (1, 2):
        for kind in sorted(("scalar", "histogram"), key=lambda kind: kind != first):
            if kind == "scalar":
                tracker.scalars(update, {name: 0.5 * update})
            else:
                tracker.histogram(update, name, np.arange(5.0))
        tracker.texts(update, name, ["one", "two"])
    tracker.close()
    assert [(event.step, event.value) for event in events_of(tmp_path).Scalars(name)] == [(1, 0.5), (2, 1.0)]
    shown = shown_as(tmp_path)
    assert name in shown["scalars"] and len(shown["histograms"]) == 1 and len(shown["text"]) == 1
    assert not shown["scalars"] & (shown["histograms"] | shown["text"])


def test_a_histogram_gives_way_to_a_scalar(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.scalars(1, {"histograms/x": 1.0})
    tracker.histogram(1, "x", np.arange(3.0))
    tracker.close()
    tags = events_of(tmp_path).Tags()
    assert tags["scalars"] == ["histograms/x"] and tags["histograms"] == ["histograms/x_"]


def test_the_layout_is_written_once_and_takes_in_later_bounds(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.scalars(0, {"train/loss": 1.0})
    tracker.scalars(
        1,
        {
            "evaluation/kl": 0.0,
            "evaluation/loss": 1.0,
            "evaluation/loss_low": 0.5,
            "evaluation/loss_high": 1.5,
            "train/loss": 1.0,
        },
    )
    tracker.scalars(2, {"evaluation/kl": 1.0, "evaluation/kl_low": 0.5, "evaluation/kl_high": 2.0})
    tracker.close()
    resumed = TensorBoardTracker(tmp_path, purge_update=3)
    resumed.scalars(3, {"evaluation/loss": 1.0, "evaluation/new": 2.0, "evaluation/new_low": 1.0})
    resumed.close()
    layout = layouts_of(tmp_path)[0]  # TensorBoard shows the first one
    [category] = layout.category
    charts = {chart.title: chart for chart in category.chart}
    [later] = charts.pop(LATER).multiline.tag
    shown = ["evaluation/new", "evaluation/new_low", "evaluation/loss_of_new"]
    hidden = ["evaluation/kl", "evaluation/loss_low", "train/loss"]
    assert [name for name in shown + hidden if re.match(later, name)] == shown
    assert set(charts) == {"kl", "loss"} and charts["loss"].HasField("margin")
    assert re.match(charts["kl"].multiline.tag[0], "evaluation/kl_high")
