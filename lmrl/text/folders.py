"""Folder of a model's files: a checkpoint's, or the newest checkpoint of a run's folder.

Needs neither torch nor transformers.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

PROCESSOR_FILE = "mask_policy.safetensors"
"""Tensors of the logits processor that a checkpoint's policy was trained with, NLPO's mask policy for instance."""
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
"""Files of a tokenizer, as patterns of a model's folder."""
MODEL_FILES = ("config.json", "adapter_config.json")
"""Files of which a model's folder holds one: a whole model's, or an adapter's."""
CHECKPOINT_LINK = "checkpoint"
"""Name of the link in a run folder that leads to its newest checkpoint."""


def list_checkpoints(run_folder: Path, required: Sequence[str] = MODEL_FILES) -> list[Path]:
    """Return a run folder's checkpoints that hold one of the files ``required``, oldest first."""
    found = (path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    # By number: other trainers write checkpoint-500 and checkpoint-1000 without leading zeros.
    complete = (path for path in found if any((path / name).exists() for name in required))
    return sorted(complete, key=lambda path: int(path.name[11:]))


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


def copy_tokenizer(source: str | Path, folder: Path) -> None:
    """Copy the tokenizer files of a model's folder beside a checkpoint, byte for byte, its own code too."""
    origin = Path(source)
    if origin.resolve() == folder.resolve():
        return
    settings = origin / "tokenizer_config.json"
    code = ("*.py",) if settings.exists() and '"auto_map"' in settings.read_text(encoding="utf-8") else ()
    for pattern in (*TOKENIZER_FILES, *code):
        for file in origin.glob(pattern):
            if file.is_file():
                target = folder / file.relative_to(origin)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
