"""A run folder: the resolved configuration, versions, metrics, sample texts; one per run, written by the main process.

``config.toml``, ``versions.json`` (with the stage's name), ``metrics.jsonl`` (a line per update or step), ``samples/``,
``tensorboard/``, ``checkpoint-<number>/`` and ``checkpoint``, a link to the newest.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lmrl import __version__
from lmrl.config import read_toml, resolved, to_toml
from lmrl.errors import ResumeError, SettingsError
from lmrl.locks import folder_lock
from lmrl.plugins import PLUGIN_API, PluginManager
from lmrl.reporting.metrics import METRICS_FILE, read_metrics
from lmrl.training.plugin_files import KEY as PLUGIN_FILES
from lmrl.training.plugin_files import described_files, note_changed_files
from lmrl.training.tracking import Tracker, check_trackers, open_trackers

CONFIG_FILE = "config.toml"
VERSIONS_FILE = "versions.json"
STARTED_IN = "started_in"
"""Key of the versions' file: the folder in which the run was started, from which its relative paths are read."""
LIBRARIES = ("torch", "transformers", "gymnasium", "accelerate", "pluggy", "datasets", "tokenizers", "numpy")


@dataclass
class Run:
    """A run in progress, as observers' hooks receive it."""

    folder: Path
    """Run folder."""
    config: Any
    """Resolved configuration."""
    is_main: bool = True
    """True in the process that writes files."""
    update: int = 0
    """Number of the update in progress."""
    unit: str = "update"
    """Unit that the run counts: "update" (rollout batches of `lmrl rl`) or "step" (supervised stages)."""
    trackers: list[Tracker] = field(default_factory=list)
    """Experiment trackers."""
    _held: ExitStack = field(default_factory=ExitStack, repr=False)

    def hold(self) -> None:
        """Hold the folder until ``close``: two processes would write over each other's metrics and checkpoints.

        Raises ``ResumeError``, which names the process, if another one has it.
        """

        def refuse(holder: str) -> None:
            raise ResumeError(
                f"{holder} is at work on {self.folder}; wait until it has ended, or choose another run.folder"
            )

        self._held.enter_context(folder_lock(self.folder, refuse))

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Append one update's numbers to ``metrics.jsonl`` and hand them to every tracker."""
        if not self.is_main:
            return
        line = json.dumps({self.unit: update, **metrics}, allow_nan=True)
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
        """Close every tracker and let go of the folder."""
        for tracker in self.trackers:
            tracker.close()
        self._held.close()


def open_run(config: Any, plugins: PluginManager, is_main: bool, stage: str, unit: str, last: int | None) -> Run:
    """Return the run at ``config.run.folder``, held by this process and with its trackers; only the main rank writes.

    ``last`` is the last update or step of a run that is resumed, -1 if it has none, and None for a new run. Raises
    ``SettingsError`` for an unknown tracker, a folder that holds another run, or one that another process holds.
    """
    check_trackers(plugins, config)  # an unknown one leaves no folder behind
    folder = Path(config.run.folder)
    run = Run(folder, config, is_main, unit=unit)
    if not is_main:
        return run
    if last is None:
        refuse_taken(folder, stage)
    run.hold()
    if last is None:
        create_folder(folder, to_toml(resolved(config, plugins)), plugins, stage)
    else:
        keep_config(config, plugins)
        write_versions(folder, plugins, stage)
        truncate_metrics(folder, last, unit)
    run.trackers += open_trackers(plugins, config, folder, None if last is None else last + 1)
    return run


def is_main_process() -> bool:
    """Say whether this is the only process, or the first of a launch by accelerate or torchrun. Needs no torch."""
    return os.environ.get("RANK", "0") == "0"


def next_free_folder(parent: Path, stem: str) -> Path:
    """Return ``parent/stem-<n>`` with the lowest n that does not exist."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def refuse_taken(folder: Path, stage: str) -> None:
    """Raise ``SettingsError`` if the folder already holds a run, or cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"run.folder is {folder}, which is a file; expected a folder, or the name of a new one.")
    if (folder / CONFIG_FILE).exists():
        raise SettingsError(
            f"{folder} already holds a run. Continue it with `lmrl {stage_of(folder) or stage} --resume {folder}`, or "
            "choose another run.folder (left empty, a free one is chosen)."
        )


def create_folder(folder: Path, config_text: str, plugins: PluginManager, stage: str = "rl") -> None:
    """Make a new run folder with its resolved configuration, the stage's name and the versions in use.

    Raises ``SettingsError`` if it already holds a run: nothing of that run is touched.
    """
    refuse_taken(folder, stage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_versions(folder, plugins, stage)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made or written to ({error.strerror}); choose another one.") from error
    write_config(folder, config_text)  # last: a folder with a configuration is a run


def write_config(folder: Path, config_text: str) -> None:
    """Write a run's resolved configuration in one piece: a kill leaves the old file or the new one."""
    partial = folder / f"{CONFIG_FILE}.partial"
    partial.write_text(config_text, encoding="utf-8")
    partial.replace(folder / CONFIG_FILE)


def keep_config(config: Any, plugins: PluginManager) -> None:
    """Write the settings of a resumed run, some of which may have changed; the folder stays as it was recorded."""
    folder = Path(config.run.folder)
    recorded = str(read_toml(folder / CONFIG_FILE)["run"]["folder"])
    write_config(folder, to_toml(resolved(replace(config, run=replace(config.run, folder=recorded)), plugins)))


def write_versions(folder: Path, plugins: PluginManager, stage: str = "rl") -> None:
    """Record the stage, the folder it was started in, plugin files, and versions: Python, libraries, plugins and API.

    Of a folder that is resumed, plugin files that have changed are logged.
    """
    note_changed_files(folder, plugins)
    content = {
        "stage": stage,
        STARTED_IN: read_versions(folder).get(STARTED_IN, str(Path.cwd())),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": library_versions(),
        "plugin_api": PLUGIN_API,
        "plugins": {info.name: info.version for info in plugins.listing() if info.version},
        PLUGIN_FILES: described_files(plugins),
    }
    (folder / VERSIONS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that figures depend on, as far as they are installed."""
    libraries = {"lmrl": __version__}  # also of a checkout that was updated and not installed again
    for name in LIBRARIES:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return libraries


def stage_of(folder: Path) -> str:
    """Return the name of the stage that made a run folder, or the empty string if it does not say."""
    return str(read_versions(folder).get("stage", ""))


def read_versions(folder: Path) -> dict[str, Any]:
    """Return what ``write_versions`` recorded; nothing where the file is missing or broken."""
    try:
        content = json.loads((folder / VERSIONS_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def truncate_metrics(folder: Path, last: int, unit: str = "update") -> None:
    """Drop the lines and samples after update or step ``last``: a resumed run writes them again."""
    kept = [record for record in read_metrics(folder) if record[unit] <= last]
    partial = folder / f"{METRICS_FILE}.partial"
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    partial.replace(folder / METRICS_FILE)
    for file in (folder / "samples").glob("*.txt"):
        if int(file.stem.rsplit("-", 1)[1]) > last:
            file.unlink()
