"""Weights of a trained model into a checkpoint, in the precision of the checkpoint that training started from.

Training keeps float32 weights. If the checkpoint is stored in half precision, the float32 weights are stored beside it
in ``training_weights.safetensors``, and a resumed run continues from these, bit for bit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmrl.errors import ModelError, PluginError
from lmrl.models.pretrained import load_weights, quiet_transformers
from lmrl.text.files import find_files, read_json

TRAINING_WEIGHTS = "training_weights.safetensors"
CheckpointDtype = Literal["auto", "float32", "bfloat16", "float16"]


def saved_dtype(setting: str, stored: str) -> torch.dtype:
    """Return the precision of a run's checkpoints; "auto" is that of the checkpoint that training started from."""
    name = stored if setting == "auto" else setting
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)


def save_model(model: Any, folder: Path, dtype: torch.dtype | None = None, resumable: bool = True) -> None:
    """Write a transformers model into ``folder``, floating point weights in ``dtype`` (None: as they are).

    ``resumable`` stores the float32 weights as well where ``dtype`` rounds them. Raises ``ModelError`` for weights
    beyond the range of ``dtype``.
    """
    state: dict[str, Tensor] = model.state_dict()
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or set()
    cast: dict[int, Tensor] = {}  # by address, so that tied weights stay tied and are written once
    result, rounded = {}, False
    for name, tensor in state.items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        if any(part in name.split(".") for part in kept):
            target = tensor.dtype
        if tensor.data_ptr() not in cast or cast[tensor.data_ptr()].shape != tensor.shape:
            cast[tensor.data_ptr()] = _cast(name, tensor, target)
        result[name] = cast[tensor.data_ptr()]
        rounded |= target.itemsize < tensor.dtype.itemsize
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=result)
    if dtype is not None:
        _write_dtype(folder / "config.json", dtype)
    if rounded and resumable:
        from safetensors.torch import save_file

        unique = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
        save_file({name: state[name].detach().contiguous() for name in unique.values()}, folder / TRAINING_WEIGHTS)


def restore_training_weights(model: Any, folder: Path) -> bool:
    """Read back the float32 weights that ``save_model`` stored beside a rounded checkpoint; False if there are none."""
    from safetensors.torch import load_file

    if not (folder / TRAINING_WEIGHTS).exists():
        return False
    found = load_file(folder / TRAINING_WEIGHTS)
    state = model.state_dict()
    addresses = {state[name].data_ptr() for name in found if name in state}
    missing = [name for name, tensor in state.items() if tensor.data_ptr() not in addresses]
    if missing or not found.keys() <= state.keys():
        raise ModelError(f"{folder / TRAINING_WEIGHTS} does not belong to the model; expected the files of one run")
    model.load_state_dict(found, strict=False)
    return True


def read_back(model: Any, folder: Path, loader: str, trust_remote_code: bool = False) -> None:
    """Read the weights of a run's checkpoint back into its float32 model, bit for bit."""
    if restore_training_weights(model, folder):
        return
    found, _ = load_weights(
        find_files(folder), loader, "the run's model", dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    model.load_state_dict(found.state_dict())


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    result = tensor.detach().to(dtype)
    if dtype == torch.float16 and bool(torch.isinf(result).any()) and not bool(torch.isinf(tensor).any()):
        raise ModelError(
            f"{name} has a weight of {float(tensor.abs().max()):g}, beyond the range of float16; set "
            'checkpoint.dtype = "bfloat16" or "float32".'
        )
    return result


def _write_dtype(file: Path, dtype: torch.dtype) -> None:
    """Set the precision in config.json, where transformers writes that of the model in memory."""
    config = read_json(file)
    config["dtype"] = str(dtype).removeprefix("torch.")
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, file)


def require_file_names(method: str, names: Iterable[str], taken: Collection[str]) -> None:
    """Raise ``PluginError`` for a name of an optimizer's ``method`` that no file of a checkpoint can have."""
    for name in names:
        if not re.fullmatch(r"(?!model$|model-)[\w-]+", name) or name in taken:
            raise PluginError(
                f"{method} returned the name {name!r}; expected another name: letters, digits, - and _, and none that "
                "a checkpoint uses itself"
            )
