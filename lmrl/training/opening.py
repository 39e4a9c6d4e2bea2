"""Opening a run folder: a new one, or one that is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmrl.config import resolved, to_toml
from lmrl.plugins import PluginManager
from lmrl.training.run import (
    Run,
    create_folder,
    keep_config,
    refuse_taken,
    truncate_metrics,
    write_versions,
)
from lmrl.training.tracking import check_trackers, open_trackers


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
