"""Suites of the kind `overoptimization`: what becomes of a gold reward when a policy is trained on a learned proxy.

After Gao, Schulman and Hilton 2023, "Scaling Laws for Reward Model Overoptimization": the gold reward labels pairs of
the starting model's answers, a reward model learns from them, and policies are trained (or the best of N answers
chosen) by that proxy alone, while both are measured on held-out prompts. Each seed has its own pairs and its own
proxy, which all optimizers of that seed share.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lmrl.bench.suite import Suite, merged
from lmrl.bench.suite_kind import Metric, RunResult, SuiteRun
from lmrl.config import build
from lmrl.locks import folder_lock
from lmrl.plugins import PluginManager
from lmrl.rewards.learned import Aggregation
from lmrl.stages.reward import RewardConfig
from lmrl.stages.rl import RLConfig
from lmrl_suites.kinds.rl import RLKind, RLTask
from lmrl_suites.models import model_identity, model_path, prepare_model

BEST_OF = "best_of_n"
"""No training: the proxy chooses among answers of the starting model."""
LEARNED = "learned"


@dataclass
class Proxy:
    """The reward model that stands for the gold reward."""

    model: str = "stories"
    """Its base: a table of [models], a folder, a hub id, or stories."""
    pairs: int = 256
    """Prompts whose two answers the gold reward compares; those that it likes equally are left out."""
    members: int = 1
    """Reward models of an ensemble."""
    aggregation: Aggregation = "mean"
    """Score of an ensemble."""
    coefficient: float = 1.0
    """In the aggregation uncertainty: what a unit of variance costs."""
    settings: dict[str, Any] = field(default_factory=dict)
    """A fragment of a recipe of `lmrl reward`."""


@dataclass
class OveroptimizationTask(RLTask):
    """A table [tasks.NAME]: that of the kind `rl`, and the proxy."""

    gold: str = "good_story"
    """The reward that is meant: it labels the pairs, and is only measured afterwards."""
    proxy: Proxy = field(default_factory=Proxy)
    best_of: int = 64
    """Answers to each held-out prompt that best-of-N chooses from."""


class OveroptimizationKind(RLKind):
    """Trains by a proxy, and measures what is meant."""

    measure = "gold"
    curves = ("gold",)
    has_frontier = False
    against_kl = ("gold", "proxy")
    metrics: ClassVar[Mapping[str, Metric]] = {
        "gold": Metric("gold reward at the end"),
        "best_gold": Metric("gold reward at its best"),
        "lost": Metric("gold reward lost since its best", low=0.0, is_measure=False),
        "proxy": Metric("proxy at the end (standard deviations of the starting model's answers)"),
        "kl": Metric("KL to the starting model (nats per answer)", low=0.0, is_measure=False),
        "proxy_accuracy": Metric("accuracy of the proxy on held-out pairs", low=0.0, high=1.0),
        "start_gold": Metric("gold reward before training", shown=False),
    }

    def able(self, suite: Suite, plugins: PluginManager) -> dict[str, str]:
        """Return every optimizer and best-of-n."""
        return {**super().able(suite, plugins), BEST_OF: ""}

    def prepare(self, suite: Suite, folder: Path, tasks: list[str], progress: bool) -> None:
        """Pretrain policies and the proxies' bases that are not there yet."""
        super().prepare(suite, folder, tasks, progress)
        for task in tasks:
            prepare_model(self._task(suite, task).proxy.model, suite.models, folder, progress)

    def resolve(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> dict[str, Any]:
        """Return what `rl` says of a run, and what the proxy is."""
        task = self._task(suite, run.task)
        said = super().resolve(suite, self._stand_in(run), plugins)
        if run.optimizer == BEST_OF:
            said["optimizer"] = {"best_of": task.best_of}
        _reward_config(suite, task, Path(), run.seed, Path())
        said["proxy"] = {**asdict(task.proxy), "model": model_identity(task.proxy.model, suite.models)}
        return said

    def config(self, suite: Suite, run: SuiteRun, folder: Path, plugins: PluginManager) -> RLConfig:
        """Return the recipe with the gold reward for its reward: the proxy takes its place once it is there."""
        config = super().config(suite, self._stand_in(run), folder, plugins)
        config.reward = dataclasses.replace(config.reward, name=self._task(suite, run.task).gold)
        return config

    def execute(self, suite: Suite, run: SuiteRun, folder: Path, plugins: PluginManager) -> RunResult:
        """Train the proxy unless another run of the seed has, then the policy; or choose the best of n."""
        task = self._task(suite, run.task)
        config = self.config(suite, run, folder, plugins)
        proxy, accuracy = self._proxy(suite, run, config, folder, plugins)
        learned = {
            "path": str(proxy),
            "aggregation": task.proxy.aggregation if task.proxy.members > 1 else "mean",
            "coefficient": task.proxy.coefficient,
        }
        config.reward = dataclasses.replace(config.reward, tables={**config.reward.tables, LEARNED: learned})
        config.reward_weights = {LEARNED: 1.0, task.gold: 0.0}
        if run.optimizer == BEST_OF:
            curve = _best_of_curve(config, self._rows(task), task.best_of, task.gold, plugins)
        else:
            lines = self._trained(config, self._rows(task), plugins)
            curve = _training_curve(lines, task.gold)
        return RunResult(_ends(curve) | {"proxy_accuracy": accuracy}, curve)

    def _task(self, suite: Suite, name: str) -> OveroptimizationTask:
        return build(OveroptimizationTask, suite.tasks[name], f"tasks.{name}")

    def _stand_in(self, run: SuiteRun) -> SuiteRun:
        """Return the run with an optimizer that a recipe can name; best-of-n reads none of its settings."""
        return dataclasses.replace(run, optimizer="reinforce") if run.optimizer == BEST_OF else run

    def _proxy(
        self, suite: Suite, run: SuiteRun, config: RLConfig, folder: Path, plugins: PluginManager
    ) -> tuple[Path, float]:
        """Return the proxy's folder and its accuracy on held-out pairs; it appears as a whole or not at all."""
        from lmrl.data import load_rankings
        from lmrl.stages.reward import reward
        from lmrl_suites.offline import judged_answers

        task = self._task(suite, run.task)
        pairs = dataclasses.replace(config.train, updates=1, prompts_per_update=task.proxy.pairs, group_size=2)
        drawing = dataclasses.replace(config, train=pairs)
        # The same members serve every way of putting them together.
        members = asdict(dataclasses.replace(task.proxy, aggregation="mean", coefficient=0.0))
        content = [members, task.gold, config.model, asdict(config.sampling), run.seed]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]
        place = folder / "proxies" / digest
        with folder_lock(folder / "proxies" / f"{digest}.making", lambda _: None):
            if not (place / ACCURACY).exists():
                shutil.rmtree(place, ignore_errors=True)
                rows = judged_answers(drawing, self._rows(task), "preferences", plugins)
                made = reward(
                    _reward_config(suite, task, folder, run.seed, place),
                    rankings=load_rankings(rows),
                    plugins=plugins,
                    progress=False,
                )
                if made.interrupted or made.report is None:
                    raise KeyboardInterrupt
                (place / ACCURACY).write_text(json.dumps(made.report.accuracy.mean), encoding="utf-8")
        return place, float(json.loads((place / ACCURACY).read_text(encoding="utf-8")))


ACCURACY = "held_out_accuracy.json"


def _reward_config(suite: Suite, task: OveroptimizationTask, folder: Path, seed: int, place: Path) -> RewardConfig:
    """Return the recipe of the proxy."""
    return build(
        RewardConfig,
        merged(
            {"data": {"held_out": 0.2}, "normalise": {"on": "data"}},
            task.proxy.settings,
            {
                "model": model_path(task.proxy.model, suite.models, folder),
                "run": {"folder": str(place), "seed": seed, "device": "cpu"},
                "ensemble": {"members": task.proxy.members},
                "checkpoint": {"every": 0, "keep": 1},
                "trackers": [],
            },
        ),
        "proxy.settings",
    )


def _training_curve(lines: Sequence[Mapping[str, float]], gold: str) -> dict[str, list[float]]:
    """Return a training run's evaluations as columns."""
    found = [line for line in lines if "evaluation/reward" in line]
    return {
        "update": [line["update"] for line in found],
        "gold": [round(line[f"evaluation/reward_{gold}"], 6) for line in found],
        "proxy": [round(line[f"evaluation/reward_{LEARNED}"], 6) for line in found],
        "kl": [round(line["evaluation/kl"], 6) for line in found],
    }


def _best_of_curve(
    config: RLConfig, rows: Sequence[Any] | None, most: int, gold: str, plugins: PluginManager
) -> dict[str, list[float]]:
    """Return what the best of n answers to the held-out prompts is worth, for n of 1, 2, 4, ...; ``update`` is n."""
    from lmrl.statistics.best_of import best_of_kl, expected_best_of
    from lmrl_suites.offline import judged_samples

    parts = judged_samples(config, rows, most, plugins)
    groups = range(0, len(parts[gold]), most)
    curve: dict[str, list[float]] = {"update": [], "gold": [], "proxy": [], "kl": []}
    n = 1
    while n <= most:
        for name, part in (("gold", gold), ("proxy", LEARNED)):
            values = [
                expected_best_of(parts[LEARNED][start : start + most], parts[part][start : start + most], n)
                for start in groups
            ]
            curve[name].append(round(sum(values) / len(values), 6))
        curve["update"].append(n)
        curve["kl"].append(round(best_of_kl(n), 6))
        n *= 2
    return curve


def _ends(curve: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the metrics of a curve.

    >>> _ends({"update": [0, 1, 2], "gold": [0.0, 2.0, 1.5], "proxy": [0, 1, 2], "kl": [0, 1, 3]})["lost"]
    0.5
    """
    gold, best = curve["gold"], max(curve["gold"])
    return {
        "gold": gold[-1],
        "best_gold": best,
        "lost": best - gold[-1],
        "proxy": curve["proxy"][-1],
        "kl": curve["kl"][-1],
        "start_gold": gold[0],
    }
