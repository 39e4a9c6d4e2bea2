"""The recipes of the quickstart's stages, as the tables that a recipe file would hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("pretrain", "sft", "prefer", "reward", "rl", "eval")
GOLD = "good_story"
"""The known utility of the story world: it labels the preferences and judges the results. RL never sees it."""
GOLD_JUDGE = {"kind": "reward", "reward": GOLD}
SAMPLING = {"max_new_tokens": 80}
HIDDEN, LAYERS, CONTEXT = 96, 2, 160
BEST_OF = 8
LEAST = {"documents": 400, "conversations": 200, "preference_prompts": 64, "prompts_per_update": 16, "held_out": 16}
"""Settings without which a stage does not run."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all stages; ``scaled`` shrinks a trial run, and the defaults take a few minutes on two cores."""

    documents: int = 32_000
    conversations: int = 9_600
    pretrain_steps: int = 500
    sft_steps: int = 150
    preference_prompts: int = 768
    responses: int = 4
    reward_steps: int = 150
    updates: int = 40
    prompts_per_update: int = 64
    held_out: int = 256

    def scaled(self, scale: float) -> Sizes:
        """Return the sizes times ``scale``, never below what a stage needs; answers per prompt stay as many."""
        least = dict.fromkeys(self.__dataclass_fields__, 2) | LEAST
        scaled = {name: max(lowest, round(getattr(self, name) * scale)) for name, lowest in least.items()}
        return Sizes(**(scaled | {"responses": self.responses}))


def recipes(folder: Path, sizes: Sizes, seed: int) -> dict[str, dict[str, Any]]:
    """Return every stage's recipe by its name; a stage reads what the ones before it wrote below ``folder``."""
    paths = {name: str(folder / name) for name in STAGES}
    tables = _of_models(folder, paths, sizes) | _of_preferences(folder, paths, sizes, seed)
    tables["eval"] = _of_evaluation(paths, sizes, seed)
    return {name: {**table, "run": {"folder": paths[name], "seed": seed}} for name, table in tables.items()}


def _of_models(folder: Path, paths: Mapping[str, str], sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Return the recipes of pretraining and fine-tuning."""
    return {
        "pretrain": {
            "corpus": {
                "paths": [str(folder / "data" / "stories.jsonl")],
                "folder": str(folder / "corpus"),
                "held_out": 0.02,
            },
            "tokenizer": {"kind": "words", "vocabulary_size": 1024},
            "model": {
                "architecture": "llama",
                "context_length": CONTEXT,
                "hidden_size": HIDDEN,
                "layers": LAYERS,
                "heads": 4,
                "config": {"intermediate_size": 256, "initializer_range": 0.05},
            },
            "train": {**_steps(sizes.pretrain_steps, 4e-3), "rows": 32},
            "checkpoint": _saved(sizes.pretrain_steps),
        },
        "sft": {
            "model": paths["pretrain"],
            "data": {"path": str(folder / "data" / "conversations.jsonl")},
            "train": _steps(sizes.sft_steps, 2e-3),
            "checkpoint": _saved(sizes.sft_steps),
        },
    }


def _of_preferences(folder: Path, paths: Mapping[str, str], sizes: Sizes, seed: int) -> dict[str, dict[str, Any]]:
    """Return the recipes of ranking responses, of the reward that learns from the rankings, and of RL with it."""
    return {
        "prefer": {
            "model": paths["sft"],
            "prompts": _requests(seed, sizes.preference_prompts),
            "sampling": SAMPLING,
            "samples": {"per_prompt": sizes.responses},
            "annotators": {"reader": GOLD_JUDGE},
        },
        "reward": {
            "model": paths["sft"],
            "data": {"path": str(folder / "prefer" / "rankings.jsonl")},
            "train": _steps(sizes.reward_steps, 1e-3),
            "checkpoint": _saved(sizes.reward_steps),
        },
        "rl": {
            "model": paths["sft"],
            "prompts": _requests(seed + 1, 2048),
            "sampling": SAMPLING,
            "reward": {"name": "learned", "learned": {"path": paths["reward"]}},
            "kl": {"beta": 0.1},
            "optimizer": {"name": "ppo"},
            "train": {
                "updates": sizes.updates,
                "prompts_per_update": sizes.prompts_per_update,
                "learning_rate": 1e-4,
            },
            "evaluation": {"every": max(1, sizes.updates // 4), "prompts": min(128, sizes.held_out)},
            "checkpoint": _saved(sizes.updates),
        },
    }


def _of_evaluation(paths: Mapping[str, str], sizes: Sizes, seed: int) -> dict[str, Any]:
    return {
        "models": [paths["pretrain"], paths["sft"], paths["rl"]],
        "names": ["base", "SFT", "RLHF"],
        "reference": paths["sft"],
        "rewards": [GOLD, paths["reward"]],
        "prompts": _requests(seed, sizes.held_out, "test"),
        "held_out": {"prompts": 0},
        "sampling": SAMPLING,
        "wins": {**GOLD_JUDGE, "baseline": "SFT"},
        "best_of": {"n": BEST_OF, "model": "SFT", "reward": paths["reward"]},
        "show": 6,
    }


def _requests(seed: int, count: int, split: str = "train") -> dict[str, Any]:
    return {"name": "stories", "stories": {"kind": "requests", "split": split, "seed": seed, "count": count}}


def _steps(count: int, rate: float, evaluations: int = 3) -> dict[str, Any]:
    every = max(1, count // evaluations)
    return {"steps": count, "learning_rate": rate, "warmup_steps": max(1, count // 20), "evaluate_every": every}


def _saved(count: int, times: int = 4) -> dict[str, Any]:
    return {"every": max(1, count // times), "keep": 1}


def chat_commands(folder: Path) -> list[str]:
    """Return what to type next, with the results of a quickstart in this folder."""
    names: Mapping[str, str] = {name: str(folder / name) for name in STAGES}
    question = "Please tell a story about Mia and a red ball in the park."
    return [
        f"lmrl chat {names['rl']}",
        f'lmrl compare {names["pretrain"]} {names["sft"]} {names["rl"]} --prompt "{question}"',
        f"lmrl rl {folder}/recipes/rl.toml run.folder=runs/other optimizer.name=reinforce",
        f"tensorboard --logdir {folder}",
    ]
