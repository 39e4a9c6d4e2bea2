"""The folder in which a run was started: a resumed run reads its relative paths from there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from lmrl.config import apply_overrides, read_toml
from lmrl.errors import ResumeError
from lmrl.training.run import CONFIG_FILE, STARTED_IN, read_versions

logger = logging.getLogger(__name__)


def starting_folder(run_folder: Path) -> Path | None:
    """Return the folder from which a run's relative paths are read, or None if it is gone.

    A project that was moved or copied as a whole is followed: its run folder ends with the relative path that the run
    was given.
    """
    folder = Path(os.path.abspath(run_folder))
    recorded = Path(read_toml(folder / CONFIG_FILE).get("run", {}).get("folder", ""))
    started = Path(str(read_versions(folder).get(STARTED_IN) or "/nowhere"))
    if started.is_dir() and (recorded.is_absolute() or _same(started / recorded, folder)):
        return started
    parts = recorded.parts
    if parts and not recorded.is_absolute() and folder.parts[-len(parts) :] == parts:
        return Path(*folder.parts[: -len(parts)])
    return started if started.is_dir() else None


@contextmanager
def in_starting_folder(run_folder: Path, overrides: Iterable[str] = ()) -> Iterator[Path]:
    """Work in the folder in which a run was started, and yield the run's folder as a path that is valid there.

    Raises ``ResumeError`` if an override names a file or folder that is relative to the current folder alone.
    """
    here, start = Path.cwd(), starting_folder(run_folder)
    if start is None:
        gone = read_versions(run_folder).get(STARTED_IN)
        logger.warning(
            "%s %s; relative paths of its configuration are read from the current folder, %s. Change to the folder "
            "that holds the run's data if files are missing.",
            run_folder,
            f"was started in {gone}, which does not exist"
            if gone
            else "does not record the folder in which it was started, as no run of version 0.1 does",
            here,
        )
        start = here
    if _same(start, here):
        yield run_folder
        return
    logger.info("relative paths are read from %s, in which the run was started", start)
    for value in _strings(apply_overrides({}, overrides)):
        if value and not Path(value).is_absolute() and (here / value).exists() and not (start / value).exists():
            raise ResumeError(
                f"{value} exists in the current folder, but the run was started in {start} and reads relative paths "
                f"from there; expected an absolute path. Write {here / value}."
            )
    with chdir(start):
        yield here / run_folder


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
