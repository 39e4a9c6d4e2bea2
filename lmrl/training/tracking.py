"""Experiment trackers: the interface, TensorBoard, and the isolation that keeps a broken tracker from ending a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lmrl.config import PluginChoice

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager


METHODS = ("scalars", "texts", "histogram", "close")


class Tracker(Protocol):
    """An experiment tracker; ``update`` numbers rollout batches from 1, and 0 is before training."""

    def scalars(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record numbers."""
        ...

    def texts(self, update: int, name: str, texts: Sequence[str]) -> None:
        """Record sample texts."""
        ...

    def histogram(self, update: int, name: str, values: Any) -> None:
        """Record a distribution, an array of numbers."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


HISTOGRAMS = "histograms/"
"""Prefix of the TensorBoard tags of histograms."""
LATER = "metrics without a chart"
"""Title of the chart of metrics that come after the layout was written."""


class TensorBoardTracker:
    """Writes TensorBoard events into ``<run folder>/tensorboard``.

    TensorBoard shows a tag in one dashboard only, so a histogram never has the tag of a scalar: its tag is its name
    after ``histograms/``. The first evaluation adds a layout for the Custom Scalars dashboard, in which each metric and
    its interval are one chart.
    """

    def __init__(self, run_folder: Path, purge_update: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_folder / "tensorboard"), purge_step=purge_update)
        self._has_layout = False
        self._scalar_tags: set[str] = set()

    def scalars(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record numbers as scalars of the same names."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, update)
        self._scalar_tags.update(metrics)
        if not self._has_layout and (layout := interval_charts(metrics)):
            self._writer.add_custom_scalars(layout)  # TensorBoard reads the first layout of a run
            self._has_layout = True

    def texts(self, update: int, name: str, texts: Sequence[str]) -> None:
        """Record sample texts, one Markdown paragraph each."""
        self._writer.add_text(name, "\n\n---\n\n".join(texts), update)

    def histogram(self, update: int, name: str, values: Any) -> None:
        """Record a histogram under its own tag."""
        tag = HISTOGRAMS + name
        while tag in self._scalar_tags:
            tag += "_"
        self._writer.add_histogram(tag, values, update)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class IsolatedTracker:
    """A tracker that cannot end a run: the first error switches it off, with one warning that names its plugin.

    ``build`` returns the tracker, and may raise as its methods may; ``warn(name, error, doing)`` shows the warning.
    Ctrl-C and ``SystemExit`` pass.
    """

    def __init__(self, name: str, build: Callable[[], Tracker], warn: Callable[[str, Exception, str], None]) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        self._warn = warn
        self._guarded("build", lambda: self._take(build()))

    def scalars(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record numbers, unless the tracker is off."""
        self._call("scalars", update, dict(metrics))

    def texts(self, update: int, name: str, texts: Sequence[str]) -> None:
        """Record sample texts, unless the tracker is off."""
        self._call("texts", update, name, texts)

    def histogram(self, update: int, name: str, values: Any) -> None:
        """Record a distribution, unless the tracker is off."""
        self._call("histogram", update, name, values)

    def close(self) -> None:
        """Flush and close, unless the tracker is off."""
        self._call("close")
        self.tracker = None

    def _take(self, tracker: Any) -> None:
        missing = [method for method in METHODS if not callable(getattr(tracker, method, None))]
        if missing:
            raise TypeError(f"{tracker!r} has no {', '.join(missing)}; expected a lmrl.training.tracking.Tracker")
        self.tracker = tracker

    def _call(self, method: str, *arguments: Any) -> None:
        tracker = self.tracker
        if tracker is not None:
            self._guarded(method, lambda: getattr(tracker, method)(*arguments))

    def _guarded(self, doing: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self.tracker = None
            self._warn(self.name, error, doing)


def open_trackers(plugins: PluginManager, config: Any, folder: Path, first_update: int | None) -> list[IsolatedTracker]:
    """Build the trackers of a run's configuration; one that cannot be built is off. Call ``check_trackers`` before."""

    def warn(name: str, error: Exception, doing: str) -> None:
        consequence = "It is switched off and the run goes on; metrics.jsonl holds every metric"
        plugins.warn("tracker", name, error, doing, consequence)

    def build(name: str) -> Any:
        spec = plugins.get("tracker", name)
        settings = [] if spec.settings is None else [_tables(config).built(name, plugins)]
        return spec.build(*settings, folder, first_update)

    return [IsolatedTracker(name, partial(build, name), warn) for name in config.trackers]


def check_trackers(plugins: PluginManager, config: Any) -> None:
    """Raise an error for a tracker that cannot be used, or its settings, before a run makes its folder."""
    for name in config.trackers:
        plugins.get("tracker", name, "trackers: ")
        _tables(config).built(name, plugins)


def _tables(config: Any) -> PluginChoice:
    tables: PluginChoice = getattr(config, "tracker", PluginChoice("tracker", ""))
    return tables


def interval_charts(metrics: Mapping[str, float]) -> dict[str, dict[str, list[Any]]]:
    """Return a layout of Custom Scalars with a chart for each metric that has, or may get, ``_low`` and ``_high``.

    Charts with both are margin charts. Others of the same group, such as ``evaluation/``, are lines that take in their
    bounds if these come later: the first evaluation has none for a metric whose values are all equal. The last chart of
    a group shows all of its metrics that have no chart, such as those that a resumed run adds.
    """
    bounds = {f"{name}{end}" for name in metrics for end in ("_low", "_high")}
    groups = {name.partition("/")[0] for name in metrics if name in bounds} | {"evaluation"}
    layout: dict[str, dict[str, list[Any]]] = {}
    for name in metrics:
        group, _, title = name.partition("/")
        if group not in groups or not title or name in bounds:
            continue
        low, high = f"{name}_low", f"{name}_high"
        whole = low in metrics and high in metrics
        lines = ["Margin", [name, low, high]] if whole else ["Multiline", [f"^{re.escape(name)}(_low|_high)?$"]]
        layout.setdefault(group, {})[title] = lines
    for group, charts in layout.items():
        known = "|".join(map(re.escape, charts))
        charts[LATER] = ["Multiline", [f"^{re.escape(group)}/(?!(?:{known})(?:_low|_high)?$)"]]
    return layout
