"""Weight files of a checkpoint, read without torch: which there are, whether they are whole, and their data type."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmrl.errors import ModelError
from lmrl.text.files import ADAPTER_WEIGHTS, INDEX, CheckpointFiles, fetch_weights, find_files, list_files, read_json

WEIGHTS = "model.safetensors"
LFS = b"version https://git-lfs"
FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of the floating point types in safetensors files, and torch's."""
LARGEST_HEADER = 100_000_000
LAYOUTS = {
    ".gguf": "GGUF files (llama.cpp)",
    ".onnx": "ONNX files",
    ".h5": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".ot": "Rust weights",
    ".npz": "NumPy archives",
    ".pt": "pickled weights of another layout (.pt)",
    ".pth": "pickled weights of another layout (.pth)",
    ".ckpt": "pickled weights of another layout (.ckpt)",
}
"""Weights that lmrl does not read, by the ending of their files."""

Header = Mapping[str, Mapping[str, Any]]
"""Tensors of a safetensors file: name to ``dtype``, ``shape`` and ``data_offsets``."""


def require_weights(files: CheckpointFiles) -> list[Path]:
    """Return the safetensors files of a checkpoint, each of them whole.

    Raises ``ModelError`` for other layouts, for missing shards, and for files that are empty, cut short or Git LFS
    pointers.
    """
    fetch_weights(files)
    folder, index = files.folder, files.folder / INDEX
    shards: dict[str, str] = {}
    if (folder / WEIGHTS).exists():
        paths = [folder / WEIGHTS]
    elif index.exists():
        shards = read_json(index).get("weight_map") or {}
        if not isinstance(shards, dict) or not shards or not all(isinstance(file, str) for file in shards.values()):
            raise ModelError(f"{index} has no weight_map; expected tensor names with their files. Download it again.")
        names = sorted(set(shards.values()))
        absent = [name for name in names if not (folder / name).exists()]
        if absent:
            raise ModelError(
                f"{files.name} is incomplete: {len(absent)} of {len(names)} weight files are missing "
                f"({', '.join(absent[:3])}); {INDEX} lists them. Download them again."
            )
        paths = [folder / name for name in names]
    else:
        raise ModelError(_no_weights(files))
    if files.adapter is not None:
        if not (files.adapter / ADAPTER_WEIGHTS).exists():
            raise ModelError(_no_adapter_weights(files.adapter))
        read_header(files.adapter / ADAPTER_WEIGHTS)
    held = {path.name: set(read_header(path)) for path in paths}
    lost = [name for name, file in shards.items() if name not in held[file]]
    if lost:
        raise ModelError(
            f"{files.name} is incomplete: {len(lost)} tensors of {INDEX} are not in their files ({listing(lost)}). "
            "Download the files again."
        )
    return paths


def _own_loader(files: CheckpointFiles) -> str:
    """Return the class that converts a checkpoint as it is: another one would draw a new head at random."""
    architectures = [str(name) for name in read_json(files.folder / "config.json").get("architectures") or []]
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "AutoModelForSequenceClassification"
    trunks = [name for name in architectures if name.endswith("Model") and not name.endswith("LMHeadModel")]
    return "AutoModel" if trunks else "AutoModelForCausalLM"


def require_all_weights(names: Iterable[str]) -> None:
    """Check the weight files of several language models before the first of them is loaded."""
    for name in names:
        require_weights(find_files(name))


def read_header(path: Path) -> Header:
    """Return the tensors that a safetensors file lists; raises ``ModelError`` unless the file is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if not size:
            raise ModelError(f"{path} is empty (0 bytes); expected safetensors weights. Download it again.")
        if (start + file.read(len(LFS)))[: len(LFS)] == LFS:
            raise ModelError(
                f"{path} is a Git LFS pointer of {size} bytes, not the weights. Run `git lfs pull` in its folder, or "
                "download the file from the hub."
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER
        file.seek(8)
        try:
            header: dict[str, Any] = json.loads(file.read(length)) if length < LARGEST_HEADER else {}
            header.pop("__metadata__", None)
            end = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"{path} is no safetensors file, or it is damaged. Download it again.") from error
    if size != end:
        raise ModelError(
            f"{path} has {size} bytes; its header lists {end} bytes. It is cut short or damaged. Download it again."
        )
    return header


def stored_dtype(folder: Path) -> str:
    """Return torch's name of the floating point type of most of a folder's weights; float32 if there are none."""
    bytes_of: Counter[str] = Counter()
    for path in sorted(folder.glob("model*.safetensors")):
        for tensor in read_header(path).values():
            if tensor["dtype"] in FLOATS:
                bytes_of[FLOATS[tensor["dtype"]]] += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    return bytes_of.most_common(1)[0][0] if bytes_of else "float32"


def other_layout(names: Iterable[str]) -> str:
    """Return a sentence about weights of a layout that lmrl does not read, or the empty string."""
    for ending, words in LAYOUTS.items():
        found = sorted(name for name in names if name.lower().endswith(ending))
        if found:
            return (
                f"It contains {words} ({found[0]}), which lmrl does not read. Use the model's original checkpoint with "
                "config.json and model.safetensors."
            )
    return ""


def listing(names: Iterable[str], shown: int = 6) -> str:
    """Return the first names in order, and the number of the others."""
    found = sorted(names)
    return ", ".join(found[:shown]) + (f" and {len(found) - shown} more" if len(found) > shown else "")


def _no_adapter_weights(folder: Path) -> str:
    message = f"{folder} holds no {ADAPTER_WEIGHTS}; expected an adapter in PEFT's layout with safetensors."
    pickled = folder / "adapter_model.bin"
    if not pickled.exists():
        return f"{message} Save it again with PEFT's save_pretrained."
    code = (
        f"import torch, safetensors.torch as s; w = torch.load({str(pickled)!r}, map_location='cpu', weights_only=True)"
    )
    code += f"; s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {str(folder / ADAPTER_WEIGHTS)!r})"
    return f'{message} Its weights are in {pickled.name}, a pickle. Convert them once: python -c "{code}"'


def _no_weights(files: CheckpointFiles) -> str:
    names = list_files(files)
    broken = sorted(name for name in names if (files.folder / name).is_symlink() and not (files.folder / name).exists())
    if broken:
        return (
            f"{files.name} is incomplete: {listing(broken)} is a link to a file that does not exist. Download it again."
        )
    pickled = sorted(
        name for name in names if name.endswith(".bin") and "/" not in name and name != "training_args.bin"
    )
    if pickled:
        loader = _own_loader(files)
        source = files.hub_id or str(files.folder)
        target = files.hub_id.split("/")[-1] if files.hub_id else str(files.folder)
        code = (
            f"import transformers as t; m = t.{loader}.from_pretrained({source!r}, dtype='auto', use_safetensors=False)"
        )
        code += f"; m.save_pretrained({target!r})"
        if files.hub_id:
            code += f"; t.AutoTokenizer.from_pretrained({source!r}).save_pretrained({target!r})"
        return (
            f"{files.name} could not be loaded: its weights are in {pickled[0]}, a pickle; lmrl reads safetensors. "
            f'Convert them once: python -c "{code}"' + (f" and name the folder {target}." if files.hub_id else "")
        )
    if absent := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"{files.name} has no {WEIGHTS} and no {INDEX}; found {listing(absent)}. Expected the file names of "
            "transformers. Rename the file, or download the index."
        )
    other = other_layout(names)
    return f"{files.name} contains no weights; expected {WEIGHTS}. {other or 'Download the file.'}"
