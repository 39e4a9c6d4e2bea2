"""A checkpoint as a folder for inference: weights and tokenizer, without value heads and training state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch

from lmrl.errors import ModelError, SettingsError
from lmrl.models.adapters import BACKBONE_FILE
from lmrl.models.loading import load
from lmrl.models.saving import save_model, saved_dtype
from lmrl.text.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointFiles, find_files
from lmrl.text.folders import copy_tokenizer
from lmrl.text.turns import record_ends

ExportDtype = Literal["auto", "float32", "bfloat16", "float16"]


def export(
    source: str | Path,
    folder: str | Path,
    *,
    merge: bool = False,
    dtype: ExportDtype = "auto",
    trust_remote_code: bool = False,
) -> str:
    """Write a model for inference into the new folder ``folder``; return "adapter" or "model", the kind of it.

    ``merge`` adds an adapter to its base model's weights, which gives a plain transformers folder with the same logits.
    Without it an adapter stays one, in PEFT's layout. ``dtype`` "auto" is float32 for a merged model, because rounding
    would change its logits, and the stored precision otherwise. Raises ``SettingsError`` for a folder that is not empty
    and for ``merge`` of a model without adapter, ``ModelError`` for a checkpoint that cannot be loaded.
    """
    target = Path(folder).expanduser()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SettingsError(f"{target} already exists and is not empty; expected a new folder. Choose another name.")
    files = find_files(source)
    if merge and files.adapter is None:
        raise SettingsError(
            f"--merge is given, but {files.name} is a whole model without an adapter to merge; leave --merge out."
        )
    if files.adapter is not None and not merge:
        _copy_adapter(files, files.adapter, target, dtype)
        return "adapter"
    found = load(source, dtype=torch.float32, trust_remote_code=trust_remote_code)
    record_ends(found.model, found.card.eos_ids)
    stored = "float32" if merge else found.stored_dtype
    save_model(found.model, target, saved_dtype(dtype, stored), resumable=False)
    copy_tokenizer(files.tokenizer, target)
    return "model"


def _copy_adapter(files: CheckpointFiles, adapter: Path, target: Path, dtype: ExportDtype) -> None:
    """Copy an adapter's own files and its tokenizer."""
    if dtype != "auto":
        raise SettingsError(
            f"--dtype {dtype} is given, but {files.name} is an adapter, which is copied as it is. Add --merge to write "
            "a whole model, or leave --dtype out."
        )
    if not (adapter / ADAPTER_WEIGHTS).exists():
        raise ModelError(f"{adapter} holds no {ADAPTER_WEIGHTS}; expected the folder of an adapter.")
    target.mkdir(parents=True, exist_ok=True)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, BACKBONE_FILE, "generation_config.json"):
        if (adapter / name).exists():
            shutil.copyfile(adapter / name, target / name)
    copy_tokenizer(files.tokenizer, target)
