"""lmrl as a side: a trainer of the RL stage, and one of its updates after another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lmrl.algorithms.rollout import Rollout
from lmrl.config import build
from lmrl.plugins import PluginManager
from lmrl.stages.rl import RLConfig
from lmrl.stages.rl.trainer import RLTrainer
from lmrl.training.memory import microbatch_budget
from lmrl_suites.throughput.setting import Cell
from lmrl_suites.throughput.shapes import ShareOfWords
from lmrl_suites.throughput.stage import Stage

BETA = 0.04
"""Coefficient of the KL on every side, so that all evaluate the reference."""
STILL = 1e-9
"""A learning rate so small that the last run measures what the first one did."""
ADAM_BETA2 = 0.999
"""torch's own, which TRL takes too."""
PLACEMENTS: dict[str, dict[str, Any]] = {
    "grpo": {"beta": BETA, "placement": "loss", "estimator": "k3"},
    "reinforce": {"beta": BETA, "placement": "loss", "estimator": "k3"},
    "rloo": {"beta": BETA, "placement": "reward", "estimator": "k1"},
}
"""Placement of each algorithm's KL, as in TRL's trainer of the name."""


class Learner:
    """An ``RLTrainer`` on a cell's workload."""

    def __init__(
        self,
        stage: Stage,
        cell: Cell,
        algorithm: str,
        learning_rate: float = STILL,
        seed: int = 0,
        updates: int = 10**6,
    ) -> None:
        settings = stage.settings
        self.reward = ShareOfWords(stage.shape.vocabulary // 4)
        cuda = stage.device == "cuda"
        table = {
            "model": str(stage.folder),
            "run": {
                "folder": str(_free(stage.runs / "run")),
                "seed": seed,
                "device": "auto" if cuda else "cpu",
                "precision": "bf16" if cuda else "no",
            },
            "sampling": {"max_new_tokens": settings.new_tokens},
            "kl": PLACEMENTS[algorithm],
            "optimizer": {"name": algorithm, algorithm: {"loss_aggregation": "sequence_mean"}},
            "train": {
                "updates": updates,
                "prompts_per_update": cell.rows // cell.group_size,
                "group_size": cell.group_size,
                "learning_rate": learning_rate,
                "adam_beta2": ADAM_BETA2,
                "microbatch_tokens": settings.microbatch_tokens,
            },
            "evaluation": {"prompts": 0},
            "trackers": [],
        }
        if algorithm == "rloo":
            table["optimizer"] = {"name": algorithm}
        config = build(RLConfig, table)
        own = config.train.microbatch_tokens or microbatch_budget(config.train, torch.device(stage.device))
        config.train.microbatch_tokens = min(own, settings.budget)
        self.trainer = RLTrainer.from_config(
            config, reward=self.reward, prompts=stage.texts(cell.rows // cell.group_size), plugins=PluginManager()
        )
        maker = self.trainer.maker
        maker.spec = replace(maker.spec, eos_ids=stage.spec(cell.lengths).eos_ids)
        self.number = 0

    @property
    def microbatch_tokens(self) -> int:
        """Positions per forward and backward pass."""
        return self.trainer.updater.token_budget

    def rollout(self) -> Rollout:
        """Sample and score the next batch, the reference's log-probabilities included."""
        self.number += 1
        rollout = self.trainer.source.next(self.number - 1).experience
        assert isinstance(rollout, Rollout)
        return rollout

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """Update from a rollout."""
        return self.trainer.updater.learn(rollout, update=max(self.number, 1))

    def step(self) -> list[int]:
        """Sample, score and learn once; return every response's length."""
        rollout = self.rollout()
        self.learn(rollout)
        lengths: list[int] = rollout.inputs.action_counts.tolist()
        return lengths

    def train(self) -> None:
        """Take all updates."""
        for _ in range(self.trainer.config.train.updates):
            self.step()
        self.close()

    def close(self) -> None:
        """Let go of the run folder."""
        self.trainer.log.close()


def _free(stem: Path) -> Path:
    number = 0
    while (path := stem.with_name(f"{stem.name}-{number}")).exists():
        number += 1
    return path
