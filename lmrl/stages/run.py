"""A run folder: the resolved configuration, versions, metrics, sample texts; one per run, written by the main process.

``config.toml``, ``versions.json``, ``metrics.jsonl`` (a line per update), ``samples/``, ``tensorboard/``,
``checkpoint-<update>/``.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lmrl.errors import NonFiniteError, SettingsError
from lmrl.stages.tracking import Tracker

CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
LIBRARIES = ("lmrl", "torch", "transformers", "gymnasium", "accelerate", "pluggy", "datasets", "tokenizers", "numpy")


@dataclass
class Run:
    """A run in progress, as observers' hooks receive it."""

    folder: Path
    config: Any
    is_main: bool = True
    update: int = 0
    trackers: list[Tracker] = field(default_factory=list)

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Append one update's numbers to ``metrics.jsonl`` and hand them to every tracker."""
        if not self.is_main:
            return
        line = json.dumps({"update": update, **metrics}, allow_nan=True)
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for tracker in self.trackers:
            tracker.scalars(update, metrics)

    def log_texts(self, update: int, name: str, texts: Sequence[str]) -> None:
        """Store sample texts of an update as a file and in every tracker."""
        if not self.is_main or not texts:
            return
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}-{update:06d}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        for tracker in self.trackers:
            tracker.texts(update, name, texts)

    def log_histogram(self, update: int, name: str, values: Any) -> None:
        """Hand a distribution to every tracker."""
        if self.is_main:
            for tracker in self.trackers:
                tracker.histogram(update, name, values)

    def close(self) -> None:
        """Close every tracker."""
        for tracker in self.trackers:
            tracker.close()


def next_free_folder(parent: Path, stem: str) -> Path:
    """Return ``parent/stem-<n>`` with the lowest n that does not exist."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def create_folder(folder: Path, config_text: str, plugin_versions: Mapping[str, str]) -> None:
    """Make a new run folder with its resolved configuration and the versions in use.

    Raises ``SettingsError`` if it already holds a run: nothing of that run is touched.
    """
    if (folder / CONFIG_FILE).exists():
        raise SettingsError(
            f"{folder} already holds a run. Continue it with `lmrl rl --resume {folder}`, or choose another "
            "run.folder (left empty, a free one is chosen)."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_text, encoding="utf-8")
    write_versions(folder, plugin_versions)


def write_versions(folder: Path, plugin_versions: Mapping[str, str]) -> None:
    """Record the versions of Python, the libraries and the plugins."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    content = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries,
        "plugins": dict(plugin_versions),
    }
    (folder / "versions.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of ``metrics.jsonl``; a line half written by a kill is left out."""
    file = folder / METRICS_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise SettingsError(f"{file}:{number + 1} is not valid JSON: {line[:80]!r}") from None
    return records


def truncate_metrics(folder: Path, last_update: int) -> None:
    """Drop the lines after ``last_update``: a resumed run writes them again."""
    kept = [record for record in read_metrics(folder) if record["update"] <= last_update]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    (folder / METRICS_FILE).write_text(text, encoding="utf-8")
    for file in (folder / "samples").glob("*.txt"):
        if int(file.stem.rsplit("-", 1)[1]) > last_update:
            file.unlink()


def require_finite(name: str, value: float, where: str) -> float:
    """Return ``value``, or raise ``NonFiniteError`` with the step and its cause."""
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{where}: {name} is {value}. The run stops here and its last checkpoint is kept. Lower the learning "
            "rate, raise kl.beta, or look at the reward's range."
        )
    return value
