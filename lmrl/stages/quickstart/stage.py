"""The whole way of RLHF on the embedded story world: text, base model, SFT, preferences, reward model, RL, evaluation.

Each stage is called as its command would call it, on files that it could have been given: the recipes are written
beside the results. Started again after a kill, it goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import tomli_w

from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.stages.quickstart.recipes import STAGES, Sizes, recipes
from lmrl.stories.corpus import conversations, documents, write_jsonl
from lmrl.training.run import CONFIG_FILE, next_free_folder

STATE_FILE = "quickstart.json"
ENTRIES = {
    "pretrain": ("lmrl.stages.pretrain.config:PretrainConfig", "lmrl.stages.pretrain.stage:pretrain"),
    "sft": ("lmrl.stages.sft.config:SFTConfig", "lmrl.stages.sft.stage:sft"),
    "prefer": ("lmrl.stages.prefer.config:PreferConfig", "lmrl.stages.prefer.stage:prefer"),
    "reward": ("lmrl.stages.reward.config:RewardConfig", "lmrl.stages.reward.stage:reward"),
    "rl": ("lmrl.stages.rl.config:RLConfig", "lmrl.stages.rl.stage:rl"),
    "eval": ("lmrl.stages.evaluate.config:EvaluateConfig", "lmrl.stages.evaluate.stage:evaluate"),
}
"""The configuration and the function of every stage."""


@dataclass
class QuickstartResult:
    """Result of a quickstart: its folder, what each stage of this call returned, and whether it was interrupted."""

    folder: Path
    results: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False


def quickstart(
    folder: str | Path = "",
    *,
    seed: int = 0,
    scale: float = 1.0,
    plugins: PluginManager | None = None,
    announce: Callable[[int, str], None] | None = None,
    progress: bool = True,
) -> QuickstartResult:
    """Run every stage, one after the other, and write one HTML page of what they found.

    ``folder`` empty continues the newest unfinished runs/quickstart-<n> of this seed and scale, or takes the next free
    one. ``scale`` shrinks the work: 1 takes a few minutes on two cores. ``announce(number, stage)`` is told of each
    stage before it starts. Raises ``SettingsError`` for a folder that was made with another seed or scale.
    """
    if not 0 < scale <= 10:
        raise SettingsError(f"scale is {scale}; expected a number above 0 and at most 10")
    plugins = plugins or PluginManager()
    place = Path(folder) if folder else _unfinished(seed, scale) or next_free_folder(Path("runs"), "quickstart")
    state = _open(place, seed, scale)
    sizes = Sizes().scaled(scale)
    tables = recipes(place, sizes, seed)
    _write_data(place, sizes, seed)
    result = QuickstartResult(place)
    for number, stage in enumerate(STAGES, start=1):
        if announce:
            announce(number, stage)
        found = _run_stage(place, stage, tables[stage], plugins, progress)
        result.results[stage] = found
        if getattr(found, "interrupted", False):
            result.interrupted = True
            return result
    from lmrl.stages.quickstart.page import write_page

    write_page(place, result.results)
    _store(place, {**state, "finished": True})
    return result


def _run_stage(place: Path, stage: str, table: dict[str, Any], plugins: PluginManager, progress: bool) -> Any:
    """Run a stage, or what is left of it: a finished one only reads its result back."""
    config_name, function_name = ENTRIES[stage]
    recipe = place / "recipes" / f"{stage}.toml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(tomli_w.dumps(table), encoding="utf-8")
    config = build(_imported(config_name), table)
    begun = (place / stage / CONFIG_FILE).exists()
    return _imported(function_name)(config, plugins=plugins, resume=begun, progress=progress)


def _write_data(place: Path, sizes: Sizes, seed: int) -> None:
    texts, talks = place / "data" / "stories.jsonl", place / "data" / "conversations.jsonl"
    if not texts.exists():
        write_jsonl(texts, ({"text": text} for text in documents(seed, sizes.documents)))
    if not talks.exists():
        write_jsonl(talks, conversations(seed, sizes.conversations))


def _unfinished(seed: int, scale: float) -> Path | None:
    """Return the newest quickstart of this seed and scale that was not finished."""
    found = [path for path in Path("runs").glob("quickstart-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        state = _state(path)
        if state and (state["seed"], state["scale"]) == (seed, scale) and not state.get("finished"):
            return path
    return None


def _open(place: Path, seed: int, scale: float) -> dict[str, Any]:
    state = _state(place)
    if state is None:
        if place.is_dir() and any(place.iterdir()):
            raise SettingsError(f"{place} is not empty and holds no quickstart; name another folder, or leave it out")
        state = {"seed": seed, "scale": scale}
        _store(place, state)
    if (state["seed"], state["scale"]) != (seed, scale):
        raise SettingsError(
            f"{place} was started with seed {state['seed']} and scale {state['scale']}; give the same ones to continue "
            "it, or another folder"
        )
    return state


def _state(place: Path) -> dict[str, Any] | None:
    file = place / STATE_FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {**content, "seed": int(content["seed"]), "scale": float(content["scale"])}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{file} is broken ({error}); remove {place}, or name another folder") from error


def _store(place: Path, state: dict[str, Any]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    partial = place / f"{STATE_FILE}.partial"
    partial.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    partial.replace(place / STATE_FILE)


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
