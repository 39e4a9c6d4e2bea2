"""What is known of a reward model without loading its weights: its tokenizer, its one label, its normalisation.

A reward model is a checkpoint of ``AutoModelForSequenceClassification`` with one label, lmrl's own or anybody's. Needs
neither torch nor, for a folder with a ``tokenizer.json``, transformers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.errors import ModelError
from lmrl.models.card import ModelCard, read_card
from lmrl.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointFiles, find_files, read_json
from lmrl.models.weight_files import read_header

ARCHITECTURE = "ForSequenceClassification"
HEAD = "score"
"""Name of the head in most families."""
SECTION = "lmrl"
"""Key of config.json under which lmrl keeps what transformers does not know; transformers hands it through."""
DEFAULT_LABELS = 2
"""What transformers assumes where config.json names no labels."""
MEMBER = "member-"
"""Folders of an ensemble's members are called this and a number from 1."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the raw scores of ``count`` reference texts; ``reference`` says which."""

    mean: float = 0.0
    std: float = 1.0
    count: int = 0
    reference: str = ""


@dataclass(frozen=True)
class RewardCard:
    """A reward model's ``card`` (``eos_ids`` is empty for encoders that know none) and its normalisation."""

    card: ModelCard
    normalisation: Normalisation


def load_reward_card(
    name_or_path: str | Path, revision: str | None = None, *, trust_remote_code: bool = False
) -> RewardCard:
    """Read the card of a reward model from a checkpoint's folder, a run's folder, an adapter's folder or the hub.

    Raises ``ModelError`` for a missing folder, a model without a reward head, and one with several labels.
    """
    path = Path(name_or_path).expanduser()
    if member_folders(path) and not (path / "config.json").exists():
        raise ModelError(
            f"{path} holds an ensemble of {len(member_folders(path))} reward models; the reward 'learned' takes it "
            f"whole, and {path / (MEMBER + '1')} is one of them"
        )
    files = find_files(name_or_path, revision)
    config = reward_config(files)
    _require_reward_head(files.name, config)
    card = read_card(files, config, trust_remote_code, needs_end=False)
    longest = read_json(files.tokenizer / "tokenizer_config.json", required=False).get("model_max_length")
    if isinstance(longest, int | float) and 0 < longest < card.context_length:  # RoBERTa: two positions are reserved
        card = dataclasses.replace(card, context_length=int(longest))
    return RewardCard(card, read_normalisation(config))


def reward_config(files: CheckpointFiles) -> dict[str, Any]:
    """Return the configuration of a checkpoint; of an adapter with a head, that of its base model with this head."""
    config = read_json(files.folder / "config.json")
    if files.adapter is None or read_json(files.adapter / ADAPTER_CONFIG).get("task_type") != "SEQ_CLS":
        return config
    weights = files.adapter / ADAPTER_WEIGHTS
    heads = {name: tensor for name, tensor in (read_header(weights) if weights.exists() else {}).items()}
    rows = [
        int(tensor["shape"][0]) for name, tensor in heads.items() if HEAD in name.split(".") and name.endswith("weight")
    ]
    return config if not rows else config | {"architectures": [f"Adapted{ARCHITECTURE}"], "num_labels": rows[0]}


def has_reward_head(config: dict[str, Any]) -> bool:
    """Say whether a config.json is that of a sequence classification checkpoint."""
    return any(str(name).endswith(ARCHITECTURE) for name in config.get("architectures") or [])


def label_count(config: dict[str, Any]) -> int:
    """Return how many numbers the head of a sequence classification checkpoint gives."""
    labels = config.get("id2label")
    return int(config.get("num_labels") or (len(labels) if labels else DEFAULT_LABELS))


def _require_reward_head(name: str, config: dict[str, Any]) -> None:
    if not has_reward_head(config):
        found = ", ".join(map(str, config.get("architectures") or ["no architecture"]))
        raise ModelError(
            f"{name} is no reward model: its config.json names {found}; expected a checkpoint of "
            f"AutoModelForSequenceClassification with one label. Train one with `lmrl reward model={name}`."
        )
    labels = label_count(config)
    if labels != 1:
        raise ModelError(
            f"{name} has {labels} labels; a reward model has one, its score. A classifier with several is no reward."
        )


def read_normalisation(config: dict[str, Any]) -> Normalisation:
    """Return the normalisation that a config.json holds; without one, scores stay as they are."""
    section = config.get(SECTION)
    found = section.get("normalisation") if isinstance(section, dict) else None
    if not isinstance(found, dict):
        return Normalisation()
    known = {field.name for field in dataclasses.fields(Normalisation)}
    result = Normalisation(**{name: value for name, value in found.items() if name in known})
    if not (math.isfinite(result.mean) and math.isfinite(result.std) and result.std > 0):
        raise ModelError(
            f"the normalisation in config.json has mean {result.mean} and std {result.std}; expected finite numbers "
            "and a std above 0"
        )
    return result


def write_normalisation(folder: Path, normalisation: Normalisation) -> None:
    """Store a normalisation in a checkpoint's config.json, in one move."""
    file = folder / "config.json"
    config = read_json(file)
    section = config.get(SECTION)
    config[SECTION] = (section if isinstance(section, dict) else {}) | {
        "normalisation": dataclasses.asdict(normalisation)
    }
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, file)


def member_folders(path: str | Path) -> list[Path]:
    """Return the folders of an ensemble's members in order, none if ``path`` holds no ensemble."""
    folder = Path(path).expanduser()
    found = [item for item in folder.glob(f"{MEMBER}*") if item.is_dir() and item.name.removeprefix(MEMBER).isdecimal()]
    return sorted(found, key=lambda item: int(item.name.removeprefix(MEMBER)))
