"""Where a model's files are: a checkpoint's folder, or the newest checkpoint of a run's folder.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import re
from pathlib import Path

MASK_FILE = "mask_policy.safetensors"
"""A checkpoint's mask policy, within whose sets the policy was trained (NLPO)."""
CHECKPOINT_LINK = "checkpoint"
"""Name of the link in a run folder that leads to its newest checkpoint."""


def list_checkpoints(run_folder: Path, required: str = "config.json") -> list[Path]:
    """Return a run folder's checkpoints that hold the file ``required``, oldest first."""
    found = (path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    # By number: other trainers write checkpoint-500 and checkpoint-1000 without leading zeros.
    return sorted((path for path in found if (path / required).exists()), key=lambda path: int(path.name[11:]))


def model_folder(name_or_path: str | Path) -> Path:
    """Return the folder that holds the model: the path itself, or the newest checkpoint if it is a run's folder.

    A hub id, or a path that does not exist, comes back as it is.
    """
    path = Path(name_or_path).expanduser()
    if (path / "config.json").exists() or not path.is_dir():
        return path
    checkpoints = list_checkpoints(path)
    return checkpoints[-1] if checkpoints else path


def point_to_newest(run_folder: Path, checkpoint: Path) -> None:
    """Let ``<run folder>/checkpoint`` lead to the newest checkpoint, where the file system has links."""
    link = run_folder / CHECKPOINT_LINK
    partial = run_folder / f"{CHECKPOINT_LINK}.partial"
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(checkpoint.name, target_is_directory=True)
        partial.replace(link)
    except OSError:  # no links here, or the name is taken: the numbered folder is enough
        partial.unlink(missing_ok=True)
