"""Checkpoints in the transformers layout, beside what a resume needs.

``checkpoint-<update>/`` loads with ``AutoModelForCausalLM.from_pretrained``. It is written under another name and
moved into place, so a kill never leaves half of one under its final name.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lmrl.errors import ResumeError
from lmrl.models.policy import PolicyModel

STATE_FILE = "trainer_state.pt"


def checkpoint_folder(run_folder: Path, update: int) -> Path:
    """Return the folder of the checkpoint after ``update`` updates."""
    return run_folder / f"checkpoint-{update:06d}"


def save_checkpoint(
    run_folder: Path, update: int, policy: PolicyModel, tokenizer_from: str, state: Mapping[str, Any], keep: int
) -> Path:
    """Write the policy, its tokenizer and ``state``; then remove all but the newest ``keep`` checkpoints."""
    final = checkpoint_folder(run_folder, update)
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    policy.save(partial, tokenizer_from)
    torch.save(dict(state), partial / STATE_FILE)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    for old in list_checkpoints(run_folder)[: -max(keep, 1)]:
        shutil.rmtree(old)
    return final


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    found = (path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted(path for path in found if (path / STATE_FILE).exists())


def load_state(folder: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` was given as ``state``; raises ``ResumeError`` if it is missing or broken."""
    file = folder / STATE_FILE
    if not file.exists():
        raise ResumeError(f"{folder} holds no {STATE_FILE}, so training cannot continue from it")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a broken or unsafe file
        raise ResumeError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
    return dict(state)
