"""Files of a folder or a glob that contain its rows: shards of one kind, and of one split where names give splits."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from lmrl.data.loading.compressed import kind_of
from lmrl.errors import DataError, nearest

logger = logging.getLogger(__name__)
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")
"""Files that ``datasets`` writes beside the data of a saved folder."""
ASIDE = (*SAVED, "dataset_infos.json", "config.json", "metadata.json", "manifest.json")
PROSE = re.compile(r"(readme|licen[cs]e|changelog|notice|citation)\b.*", re.IGNORECASE)
SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=[-_./]|$)")
SAME = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "validation"}
"""Other names for the split ``validation``."""


def is_saved(folder: Path) -> bool:
    """Return whether ``datasets`` saved a folder."""
    return any((folder / name).is_file() for name in SAVED)


def is_glob(name: str) -> bool:
    """Return whether a name is a pattern of file names."""
    return glob.has_magic(name)


def matching_shards(pattern: Path, kinds: Collection[str]) -> list[Path]:
    """Return the files that a glob matches, in the order of their names. Raises ``DataError`` where there is none."""
    files = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if Path(name).is_file()]
    if not files:
        folder = next((parent for parent in pattern.parents if not is_glob(str(parent))), Path())
        names = [item.name for item in folder.iterdir()] if folder.is_dir() else []
        guess = nearest(pattern.name, names)
        raise DataError(f"no file matches {pattern}." + (f" {folder} contains {guess}." if guess else ""))
    return _of_one_kind(files, str(pattern), kinds)


def folder_shards(folder: Path, split: str, kinds: Collection[str]) -> list[Path]:
    """Return a folder's data files, subfolders included, in the order of their names.

    Where names say which split a file belongs to, those of ``split`` are taken. Raises ``DataError`` when there is no
    such file, or when the files are of several kinds.
    """
    inner = sorted({path.parent for name in SAVED for path in folder.rglob(name)})
    if inner:
        raise DataError(
            f"{folder} is a folder that datasets did not save, but it contains some that it did; name one of them: "
            f"{', '.join(map(str, inner[:5]))}."
        )
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_data(path.relative_to(folder))]
    files = [path for path in found if kind_of(path) in kinds]
    if not files:
        held = ", ".join(path.name for path in found[:5]) or "nothing"
        raise DataError(
            f"{folder} is a folder that contains no data files and that datasets did not save; it contains {held}. "
            f"Expected files that end in {', '.join(sorted(kinds))}."
        )
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    if any(splits.values()):
        wanted = SAME.get(split, split)
        chosen = [path for path in files if splits[path] == wanted]
        if not chosen:
            known = ", ".join(sorted({name for name in splits.values() if name}))
            raise DataError(f"{folder} has no split {split!r}; its files belong to {known}. Set split, or name a file.")
        unsplit = [path.name for path in files if not splits[path]]
        if unsplit:
            logger.warning("%s: %d files name no split and are not read, such as %s", folder, len(unsplit), unsplit[0])
        files = chosen
    files = _of_one_kind(files, str(folder), kinds)
    logger.info("%s: read %d files, %s to %s", folder, len(files), files[0].name, files[-1].name)
    return files


def _of_one_kind(files: Sequence[Path], where: str, kinds: Collection[str]) -> list[Path]:
    found = {kind_of(path): path for path in reversed(files)}
    unknown = next((path for kind, path in found.items() if kind not in kinds), None)
    if unknown is not None:
        raise DataError(f"{where}: {unknown.name} is of an unknown kind; expected one of {', '.join(sorted(kinds))}.")
    if len(found) > 1:
        names = " and ".join(sorted(path.name for path in found.values()))
        raise DataError(
            f"{where}: the files are of several kinds ({names}); expected one. Name a file, or a glob such as "
            f"{Path(where).parent if is_glob(where) else where}/*{sorted(found)[0]}."
        )
    return list(files)


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and path.name not in ASIDE and not PROSE.fullmatch(path.name)


def _split_of(path: Path) -> str:
    name = str(path.with_name(path.name.split(".")[0])).lower()
    found = SPLIT.findall(name)
    return SAME.get(found[-1], found[-1]) if found else ""
