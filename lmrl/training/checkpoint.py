"""Checkpoints in the transformers layout, beside what a resume needs.

``checkpoint-<number>/`` loads with ``AutoModelForCausalLM.from_pretrained``, or with PEFT where it holds an adapter.
It is written under another name and moved into place, so a kill never leaves half of one under its final name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmrl.errors import NonFiniteError, ResumeError
from lmrl.plugins import PluginManager
from lmrl.text import folders
from lmrl.training.run import Run

STATE_FILE = "trainer_state.pt"


def checkpoint_folder(run_folder: Path, number: int) -> Path:
    """Return the folder of the checkpoint after ``number`` updates or steps."""
    return run_folder / f"checkpoint-{number:06d}"


def save_checkpoint(
    run_folder: Path, number: int, write: Callable[[Path], None], state: Mapping[str, Any], keep: int
) -> Path:
    """Let ``write`` put the model into the checkpoint's folder, add ``state``, and keep the newest ``keep``.

    ``<run folder>/checkpoint`` leads to the newest one.
    """
    final = write_checkpoint(checkpoint_folder(run_folder, number), write, state)
    folders.point_to_newest(run_folder, final)
    for old in list_checkpoints(run_folder)[: -max(keep, 1)]:
        shutil.rmtree(old)
    return final


def write_checkpoint(final: Path, write: Callable[[Path], None], state: Mapping[str, Any]) -> Path:
    """Write one checkpoint under another name, and move it to ``final``, which it replaces; return its path."""
    final = final.resolve()
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    torch.save(dict(state), partial / STATE_FILE)
    replaced = final.with_name(final.name + ".replaced")
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def save_run(
    run: Run,
    accelerator: Any,
    plugins: PluginManager,
    number: int,
    module: nn.Module,
    write: Callable[[Path], None],
    state: Callable[[], Mapping[str, Any]],
) -> None:
    """Write a checkpoint of a run from the main rank and tell the plugins; every rank calls this.

    ``state`` is called on the main rank alone. Raises ``NonFiniteError`` before anything is written if a parameter of
    ``module`` is not finite.
    """
    accelerator.wait_for_everyone()
    if not run.is_main:
        return
    if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
        raise NonFiniteError(f"{run.unit} {number}: a parameter is not finite; the last checkpoint is kept")
    path = save_checkpoint(run.folder, number, write, state(), run.config.checkpoint.keep)
    plugins.observe("lmrl_checkpoint_saved", run=run, path=path)


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    return folders.list_checkpoints(run_folder, [STATE_FILE])


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
