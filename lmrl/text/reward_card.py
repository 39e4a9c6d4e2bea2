"""Card of a reward model, read without its weights: its tokenizer, its one label, its normalisation.

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
from lmrl.text.card import ModelCard, read_card
from lmrl.text.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointFiles, find_files, read_json
from lmrl.text.labels import ONLY_SCORE, Choice, Output, choose_label
from lmrl.text.weight_files import read_header

ARCHITECTURE = "ForSequenceClassification"
HEAD = "score"
"""Name of the head in most families."""
SECTION = "lmrl"
"""Key of config.json under which lmrl keeps what transformers does not know; transformers hands it through."""
ENCODERS = (
    "albert", "bert", "big_bird", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert",
    "longformer", "mobilebert", "modernbert", "mpnet", "nystromformer", "roberta", "roberta-prelayernorm", "roformer",
    "squeezebert", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
"""Families that read a text in both directions, in their tokenizer's own form, even where they name an EOS."""
RESERVE_POSITIONS = (
    "camembert", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"
)  # fmt: skip
"""Families whose positions begin behind the padding id."""
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
    """A reward model's ``card`` (``eos_ids`` is empty for encoders), its normalisation and the number that counts."""

    card: ModelCard
    normalisation: Normalisation
    choice: Choice = ONLY_SCORE


def load_reward_card(
    name_or_path: str | Path,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    label: str = "",
    output: Output = "log_probability",
) -> RewardCard:
    """Read the card of a reward model from a checkpoint's folder, a run's folder, an adapter's folder or the hub.

    ``label`` is the label of a classifier with several that is the reward, and ``output`` its form. Raises
    ``ModelError`` for a missing folder, a model without a reward head, and a missing or unknown label.
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
    choice = choose_label(files.name, config, label, output)
    card = read_card(files, config, trust_remote_code, needs_end=False)
    longest = read_json(files.tokenizer / "tokenizer_config.json", required=False).get("model_max_length")
    return RewardCard(scorer_card(card, config, longest), read_normalisation(config), choice)


def scorer_card(card: ModelCard, config: dict[str, Any], longest: Any = None) -> ModelCard:
    """Return the card of a model that scores texts: encoders close no row by EOS, and some reserve positions.

    ``longest`` is the tokenizer's ``model_max_length``.
    """
    kind = str(config.get("model_type"))
    limits = [card.context_length]
    if isinstance(longest, int | float) and longest > 0:
        limits.append(int(min(longest, card.context_length)))
    if kind in RESERVE_POSITIONS:  # positions are counted from behind the padding id
        limits.append(card.context_length - 1 - (1 if card.pad_id is None else card.pad_id))
    eos_ids = () if kind in ENCODERS else card.eos_ids
    return dataclasses.replace(card, context_length=min(limits), eos_ids=eos_ids)


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


def _require_reward_head(name: str, config: dict[str, Any]) -> None:
    if not has_reward_head(config):
        found = ", ".join(map(str, config.get("architectures") or ["no architecture"]))
        raise ModelError(
            f"{name} is no reward model: its config.json names {found}; expected a checkpoint of "
            f"AutoModelForSequenceClassification. Train one with `lmrl reward model={name}`."
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
