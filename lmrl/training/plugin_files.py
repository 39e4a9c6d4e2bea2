"""Plugin files of a run: ``versions.json`` records them, and a resumed run loads them again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmrl.errors import ResumeError
from lmrl.plugins import PluginManager

logger = logging.getLogger(__name__)
KEY = "plugin_files"
"""Key of the versions' file: the plugin files of the run."""


def described_files(plugins: PluginManager) -> list[dict[str, Any]]:
    """Return path and SHA-256 of each plugin file in use, with those of the neighbours that it imported."""
    files = [file for file in plugins.files if file.is_file()]
    if not files:
        return []
    from lmrl.plugins.files import digest_of, neighbours_of  # late: see ``lmrl.plugins.sources.load_file``

    others = {str(file.resolve()) for file in files}
    return [
        {
            "path": str(file),
            "sha256": digest_of(file),
            "imports": {path: digest for path, digest in neighbours_of(file).items() if path not in others},
        }
        for file in files
    ]


def resumed_files(folder: str | Path, given: Iterable[str | Path] = ()) -> list[Path]:
    """Return the plugin files of a run that is resumed: those that it recorded, and those ``given``.

    A given file takes the place of a recorded one with the same name, which may have moved. Raises ``ResumeError``,
    which names the file, if a recorded one does not exist.
    """
    named = [Path(file).expanduser().absolute() for file in given]
    kept = []
    for record in _recorded(Path(folder)):
        path = _found(Path(folder), Path(record["path"]))
        if any(path.name == file.name for file in named):
            continue
        if not path.is_file():
            raise ResumeError(
                f"the run in {folder} uses the plugin file {path}, which does not exist; expected the file. Restore "
                f"it, or pass its new path with --plugin PATH/{path.name}"
            )
        kept.append(path)
    return [*kept, *named]


def plugins_of(folder: str | Path, resume: bool) -> PluginManager:
    """Return a new manager for a run, with the plugin files that a resumed run recorded."""
    return PluginManager(resumed_files(folder) if resume else ())


def note_changed_files(folder: Path, plugins: PluginManager) -> None:
    """Log which recorded plugin files, and neighbours that they imported, have changed or are not loaded now."""
    used = {Path(record["path"]).name: record for record in described_files(plugins)}
    for record in _recorded(folder):
        path = Path(record["path"])
        now = used.get(path.name)
        if now is None:
            logger.warning("the run in %s was started with the plugin file %s, which is not loaded now", folder, path)
            continue
        before, after = _digests(record), _digests(now)
        changed = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
        if changed:
            logger.warning(
                "the plugin file %s is not what the run in %s was started with: %s changed; the run continues with "
                "the file as it is now",
                now["path"],
                folder,
                ", ".join(changed),
            )


def _digests(record: dict[str, Any]) -> dict[str, str]:
    """Return the digests by the files' names: a folder that moved as a whole has not changed."""
    imports = record.get("imports", {})
    return {Path(path).name: digest for path, digest in {record["path"]: record["sha256"], **imports}.items()}


def _recorded(folder: Path) -> list[dict[str, Any]]:
    from lmrl.training.run import read_versions  # which imports this module

    return [dict(record) for record in read_versions(folder).get(KEY, [])]


def _found(folder: Path, path: Path) -> Path:
    """Return the path of a recorded file; in a project that was moved as a whole, its new path."""
    from lmrl.training.origin import starting_folder
    from lmrl.training.run import STARTED_IN, read_versions

    before = read_versions(folder).get(STARTED_IN)
    if path.is_file() or not before or not path.is_relative_to(before):
        return path
    now = starting_folder(folder)
    moved = now / path.relative_to(before) if now else path
    return moved if moved.is_file() else path
