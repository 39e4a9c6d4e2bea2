"""What accelerate is asked for: devices, ranks, precision, and agreement between ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lmrl.stages.run import next_free_folder
from lmrl.stages.settings import RunSettings


def make_accelerator(run: RunSettings) -> Any:
    """Return accelerate's handle on devices, ranks and precision for these settings."""
    from accelerate import Accelerator

    precision = run.precision
    if precision == "auto":
        on_gpu = run.device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if on_gpu else "no"
    return Accelerator(mixed_precision=precision, cpu=run.device == "cpu" or None)


def free_folder(stem: str) -> str:
    """Return the next free runs/<stem>-<n>, which the main process chooses: another might look after it was made."""
    from accelerate.utils import broadcast_object_list

    chosen = [str(next_free_folder(Path("runs"), stem))]
    broadcast_object_list(chosen)
    return chosen[0]


def any_rank(accelerator: Any, here: bool) -> bool:
    """Say whether this holds on any rank: a signal reaches ranks at different steps; they must stop at one."""
    if accelerator.num_processes == 1:
        return here
    flag = torch.tensor(float(here), device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum") > 0)
