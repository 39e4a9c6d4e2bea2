"""Changes to a checkpoint's files, and the cache that a download from the hub leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

HUB_ID = "someone/tiny"


def cache_on_hub(folder: Path, cache: Path, hub_id: str = HUB_ID) -> str:
    """Copy a folder into a cache of the hub, as a download leaves it, and return its id."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40), symlinks=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return hub_id


def edit_json(file: Path, **changes) -> None:
    """Change keys of a JSON file; a key with the value ... is removed."""
    content = (json.loads(file.read_text()) if file.exists() else {}) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(folder: Path, change, name: str = "model.safetensors") -> None:
    """Apply ``change`` to the dictionary of a folder's tensors."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})
