"""Use of accelerate: devices, ranks, precision, and agreement between ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lmrl.errors import SettingsError
from lmrl.training.run import next_free_folder
from lmrl.training.settings import RunSettings


def make_accelerator(run: RunSettings) -> Any:
    """Return accelerate's handle on devices, ranks and precision for these settings."""
    from accelerate import Accelerator
    from accelerate.utils import parse_flag_from_env

    precision = run.precision
    if precision == "auto":
        on_gpu = run.device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if on_gpu else "no"
    cpu = run.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    _release_state(precision, cpu)
    return Accelerator(mixed_precision=precision, cpu=cpu or None)


def weights_dtype(precision: str) -> torch.dtype | None:
    """Return the dtype that a stage without training loads a model in; None leaves it to ``lmrl.models.load``."""
    return {"bf16": torch.bfloat16, "no": torch.float32}.get(precision)


def torch_device(device: str) -> torch.device:
    """Return the device that a setting ("auto", "cpu", or a name of torch's) stands for.

    Raises ``SettingsError`` for a name that torch does not know and a GPU that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        gpus = torch.cuda.device_count()
        raise SettingsError(
            f"the device is {device!r}, which cannot be used here; expected auto, cpu, or one of {gpus} GPUs"
            + (" (cuda, cuda:1 and so on)" if gpus else "")
        ) from error
    return found


def _release_state(precision: str, cpu: bool) -> None:
    """Let accelerate choose anew where the stage before, in this process, wanted another precision or device.

    It keeps one state per process and refuses to change it, or keeps the CPU although a GPU is wanted now. Between
    stages nobody needs it; process groups stay. Raises ``SettingsError`` for another device in a launch of several.
    """
    from accelerate.state import AcceleratorState, PartialState

    if not PartialState._shared_state:
        return
    before = PartialState()
    other_device = torch.cuda.is_available() and cpu != (before.device.type == "cpu")
    if other_device and before.num_processes > 1:
        raise SettingsError(
            f"run.device is {'cpu' if cpu else 'auto'}, and the {before.num_processes} processes were started on "
            f"{before.device.type}; give all stages of one program the same device"
        )
    if other_device or (AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision):
        AcceleratorState._reset_state(reset_partial_state=other_device)


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


def gradient_sync(accelerator: Any, module: Any, last: bool) -> AbstractContextManager[Any]:
    """Return the context of a backward pass: ranks exchange gradients in the last one of an optimizer step alone."""
    if last or accelerator.num_processes == 1:
        return nullcontext()
    context: AbstractContextManager[Any] = accelerator.no_sync(module)
    return context
