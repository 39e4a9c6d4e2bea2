"""Files of a checkpoint: a folder, a run's folder, an adapter's folder, or a snapshot of the hub. Needs no torch.

A hub id is resolved to its snapshot in the hub's local cache first, so that every later check reads files of a folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.errors import ModelError, nearest
from lmrl.text.folders import model_folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
"""Configuration, tokenizer and code of a repository, as patterns of its root."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Location of a checkpoint's parts.

    ``name`` is the name that was given. ``folder`` contains config.json and the weights, ``tokenizer`` the tokenizer's
    files. ``adapter`` is the folder of a low-rank adapter on the weights of ``folder``, or None.
    """

    name: str
    folder: Path
    tokenizer: Path
    adapter: Path | None = None
    hub_id: str = ""
    revision: str | None = None


class _AdapterBase(ModelError):
    """The base model of an adapter is an adapter itself."""


def find_files(name_or_path: str | Path, revision: str | None = None, *, is_base: bool = False) -> CheckpointFiles:
    """Return the files of a model's name: a folder (also of a run or an adapter) or a hub id.

    Weights of a hub id are not fetched yet; see ``fetch_weights``. ``is_base`` refuses an adapter. Raises
    ``ModelError`` for a missing folder, a hub id that cannot be reached, an adapter whose base model is missing, and
    a folder with a whole model and an adapter.
    """
    path = model_folder(name_or_path)
    local = path.is_dir()
    if local:
        name, folder = str(path), path
    else:
        name = str(name_or_path)
        refuse_missing_path(name)
        folder = _snapshot(name, revision, SMALL_FILES)
    files = CheckpointFiles(name, folder, folder, None, "" if local else name, revision)
    if not (folder / ADAPTER_CONFIG).exists():
        return files
    if (folder / "config.json").exists() and (whole := _whole_weights(files)):
        raise ModelError(
            f"{name} contains a whole model ({whole}) and an adapter ({ADAPTER_CONFIG}); expected one of them, because "
            "the adapter may be part of the weights already. Move the adapter's files, or config.json and the weights, "
            "to another folder."
        )
    if is_base:
        raise _AdapterBase(f"{name} is an adapter; expected a base model.")
    return _adapter_files(name, folder, files.hub_id, revision)


def fetch_weights(files: CheckpointFiles) -> None:
    """Fetch the safetensors files of a hub id into the local cache; a local folder needs nothing."""
    if not files.hub_id:
        return
    patterns = ["model.safetensors"]
    index = files.folder / INDEX
    if index.exists():
        patterns = sorted(set(read_json(index).get("weight_map", {}).values()))
    _snapshot(files.hub_id, files.revision, patterns)


def list_files(files: CheckpointFiles) -> list[str]:
    """Return the names of a checkpoint's files; of a hub id those of the repository, where it can be reached."""
    names = {item.name for item in files.folder.iterdir()}
    if files.hub_id:
        from huggingface_hub import HfApi

        try:
            names |= set(HfApi().list_repo_files(files.hub_id, revision=files.revision))
        except Exception:  # offline: the cache's files are all that is known
            return sorted(names)
    return sorted(names)


def read_json(path: Path, required: bool = True) -> dict[str, Any]:
    """Return a JSON object of a model's folder; a missing file is {} unless ``required``."""
    if not path.exists():
        if not required:
            return {}
        raise ModelError(_no_config(path) if path.name == "config.json" else f"{path} does not exist.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def _whole_weights(files: CheckpointFiles) -> str:
    """Return the first weight file of a whole model beside an adapter; empty if the adapter is alone."""
    kinds = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
    return next((name for name in list_files(files) if name in kinds), "")


def refuse_missing_path(name: str) -> None:
    """Raise ``ModelError`` for a name that looks like a path and does not exist; the error names its neighbor."""
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    parent = Path(name).expanduser().parent
    if not looks_local and not (name.count("/") == 1 and parent.is_dir()):
        return
    siblings = [item.name for item in parent.iterdir()] if parent.is_dir() else []
    guess = nearest(Path(name).name, siblings)
    hint = f" Did you mean {parent / guess}?" if guess else ""
    raise ModelError(f"there is no model folder {name}.{hint} Expected a folder with config.json, or a hub id.")


def _no_config(path: Path) -> str:
    """Return the message for a folder without config.json; files of another layout are named."""
    from lmrl.text.weight_files import other_layout

    folder = path.parent
    message = f"{folder} holds no {path.name}; expected a model folder in the transformers layout."
    items = sorted(folder.iterdir(), key=lambda item: (len(item.name), item.name)) if folder.is_dir() else []
    inside = [item for item in items if any((item / name).exists() for name in ("config.json", ADAPTER_CONFIG))]
    if inside:
        what = "a model" if (inside[-1] / "config.json").exists() else "an adapter"
        return f"{message} {what.capitalize()} is in {inside[-1]}; name that folder."
    return f"{message} {other_layout([item.name for item in items])}".rstrip()


def _snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the local snapshot of a hub id with the files of its root that match ``patterns``."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:  # the hub's client raises many kinds; each means that there is nothing to read
        text = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{name} is neither a folder here nor a model on the hub that can be reached "
            f"({type(error).__name__}: {text})"
        ) from error


def _adapter_files(name: str, folder: Path, hub_id: str, revision: str | None) -> CheckpointFiles:
    settings = read_json(folder / ADAPTER_CONFIG)
    base = settings.get("base_model_name_or_path")
    advice = f"Set base_model_name_or_path in {folder / ADAPTER_CONFIG} to the base model's folder or hub id."
    merged = folder.parent
    if (merged / "config.json").exists():
        advice += f" {merged} contains the merged model, which needs no base model."
    if not isinstance(base, str) or not base:
        raise ModelError(f"{name} is an adapter, and its {ADAPTER_CONFIG} names no base model. {advice}")
    if hub_id:
        _snapshot(hub_id, revision, [ADAPTER_WEIGHTS])
    try:
        below = find_files(base, settings.get("revision"), is_base=True)
    except _AdapterBase as error:
        raise ModelError(f"{name} is an adapter on {base}, another adapter; expected a base model. {advice}") from error
    except ModelError as error:
        raise ModelError(
            f"{name} is an adapter on the base model {base}, which is missing: {error} {advice}"
        ) from error
    own = any((folder / file).exists() for file in ("tokenizer.json", "tokenizer_config.json"))
    return CheckpointFiles(name, below.folder, folder if own else below.tokenizer, folder, below.hub_id, below.revision)
