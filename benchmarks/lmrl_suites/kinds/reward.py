"""Suites of the kind `reward`: reward models by loss and data, against the share of the labels that they learn from.

What stands for an optimizer is a way of learning: the likelihood of whole rankings, of all their pairs, or of one pair
of each, and two baselines. A seed is a held-out split, an order of the rest, of which the shares are the beginnings,
and a new head. The budget counts epochs over the rankings; from one pair of each, as many rows are computed in all, so
each pair comes the more often.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lmrl.bench.suite import Suite, merged
from lmrl.bench.suite_kind import Metric, RunResult, SuiteKind, SuiteRun
from lmrl.config import build
from lmrl.data import RankingSet, load_rankings
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.stages.reward import RewardConfig
from lmrl.stages.reward.data import RankedRows, encode_rankings
from lmrl_suites.models import STORIES, model_identity, model_path, prepare_model
from lmrl_suites.rankings import Drawn, draw, drawn_path, loaded, one_pair, readable, split

if TYPE_CHECKING:
    from lmrl.stages.reward.measures import HeldOut, RewardReport

LOSSES = {"plackett_luce": "plackett_luce", "bradley_terry": "bradley_terry", "one_pair": "bradley_terry"}
"""The loss of each way of learning; one_pair takes one pair of a ranking, the others all of it."""
BAG, LONGER = "bag_of_words", "longer_answer"
SAID = (
    ("train", "steps"),
    ("train", "warmup_steps"),
    ("run", "seed"),
    ("run", "folder"),
    ("objective", "loss"),
    ("ensemble", "members"),
)
"""Settings of a recipe that a suite does not take."""


@dataclass
class RewardTask:
    """A table [tasks.NAME] of a suite of the kind `reward`."""

    model: str = STORIES
    """Trunk of the heads: a table of [models], a folder, a hub id, or stories. Empty: the user must say."""
    drawn: Drawn | None = None
    """Rankings that are made; left out, settings.data.path says where they are."""
    shares: list[float] = field(default_factory=lambda: [0.125, 0.25, 0.5, 1.0])
    """Parts of the training rankings to learn from, ascending; metrics are those of the last."""
    settings: dict[str, Any] = field(default_factory=dict)
    """A fragment of a recipe of `lmrl reward`, put over the suite's."""

    def __post_init__(self) -> None:
        if not self.shares or self.shares != sorted(set(self.shares)) or not 0 < self.shares[0] <= self.shares[-1] <= 1:
            raise SettingsError(f"shares is {self.shares}; expected ascending numbers above 0 and at most 1")


class RewardKind(SuiteKind):
    """Trains reward models with ``lmrl.reward`` and measures them on held-out prompts."""

    measure = "accuracy"
    curves = ("accuracy", "log_loss", "calibration_error")
    curve_over = "share of the labels"
    has_frontier = False
    takes_beta = False
    takes_recipes = False
    units = ("epochs",)
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("accuracy on held-out pairs", low=0.0, high=1.0),
        "log_loss": Metric("log loss (nats per pair; 0.693 without knowledge)", low=0.0, is_measure=False),
        "calibration_error": Metric("expected calibration error", low=0.0, high=1.0, is_measure=False),
        "kendall_tau": Metric("Kendall's tau of rankings of three or more", low=-1.0, high=1.0, is_measure=False),
        "top_1": Metric("share of rankings whose best answer is on top", low=0.0, high=1.0, is_measure=False),
        "accuracy_where_shorter_is_better": Metric(
            "accuracy where the better answer is shorter", low=0.0, high=1.0, is_measure=False
        ),
        "rankings": Metric("rankings learned from", 0, low=0.0, is_measure=False),
        "pairs": Metric("held-out pairs", 0, shown=False, is_measure=False),
    }

    def able(self, suite: Suite, plugins: PluginManager) -> dict[str, str]:
        """Return the ways of learning, and the baselines."""
        lacking = "" if find_spec("sklearn") else 'scikit-learn is not installed: pip install "lmrl[bench]"'
        return {**dict.fromkeys(LOSSES, ""), BAG: lacking, LONGER: ""}

    def lacking(self, suite: Suite, task: str) -> str:
        """Return which of model and data the user has not said."""
        found = self._task(suite, task)
        table = merged(suite.settings, found.settings)
        unsaid = [] if found.model else [f"tasks.{task}.model=... (a folder or a hub id)"]
        if not found.drawn and isinstance(table.get("data", {}), Mapping) and not _section(table, "data").get("path"):
            unsaid.append(f"tasks.{task}.settings.data.path=... (preferences)")
        return "give " + " and ".join(unsaid) if unsaid else ""

    def prepare(self, suite: Suite, folder: Path, tasks: list[str], progress: bool) -> None:
        """Pretrain models and draw rankings that are not there yet."""
        for name in tasks:
            task = self._task(suite, name)
            prepare_model(task.model, suite.models, folder, progress)
            if task.drawn:
                draw(task.drawn, folder, PluginManager())

    def resolve(self, suite: Suite, run: SuiteRun, plugins: PluginManager) -> dict[str, Any]:
        """Return the recipe, what the model is, and what tells the rankings apart."""
        task = self._task(suite, run.task)
        config = self.config(suite, run, Path())
        trained = run.optimizer in LOSSES
        table: dict[str, Any] = (
            {"objective": asdict(config.objective), "train": asdict(config.train)} if trained else {}
        )
        if trained:
            table["precision"] = config.run.precision
        table["data"] = {
            name: getattr(config.data, name) for name in ("held_out", "too_long", "max_tokens", "template", "chat")
        }
        if task.drawn:
            plugins.get("reward", task.drawn.gold)
            table["drawn"] = asdict(task.drawn)
        else:
            found = loaded(config.data)
            table["data"] |= {"path": Path(config.data.path).name, "fingerprint": found.fingerprint()[:12]}
            if task.model not in suite.models:  # those may not be there yet
                kept = readable(found, config)[0]
                for seed in range(suite.seeds):
                    split(kept, config, seed)
        table["model"], table["shares"] = model_identity(task.model, suite.models), task.shares
        return table

    def config(self, suite: Suite, run: SuiteRun, folder: Path) -> RewardConfig:
        """Return the recipe of a run, whose steps depend on the share."""
        task = self._task(suite, run.task)
        table = merged(suite.settings, task.settings)
        for section, name in SAID:
            if name in _section(table, section):
                raise SettingsError(
                    f"settings.{section}.{name} is set, but the suite says it by its budget, seeds, optimizers and "
                    "tasks, or has no use for it; leave it out"
                )
        margins = [name for name in ("margin", "score_margin") if _section(table, "objective").get(name)]
        if margins and LOSSES.get(run.optimizer) == "plackett_luce":
            raise SettingsError(
                f"settings.objective.{margins[0]} is set, but a margin belongs to pairs, and {run.optimizer} learns "
                "from whole rankings; give --optimizers bradley_terry,one_pair"
            )
        if task.drawn and _section(table, "data").get("path"):
            raise SettingsError(
                f"tasks.{run.task} has drawn and settings.data.path; expected one of them, which says where rankings "
                "come from"
            )
        return build(
            RewardConfig,
            merged(
                {"train": {"evaluate_every": 0}, "normalise": {"on": "off"}},
                table,
                {
                    "model": model_path(task.model, suite.models, folder),
                    "run": {"seed": run.seed, "device": _section(table, "run").get("device", "cpu")},
                    "objective": {"loss": LOSSES.get(run.optimizer, "bradley_terry")},
                    "checkpoint": {"every": 0, "keep": 1},
                    "trackers": [],
                },
            ),
            "settings",
        )

    def execute(self, suite: Suite, run: SuiteRun, folder: Path, plugins: PluginManager) -> RunResult:
        """Learn from each share, and measure on the same held-out prompts."""
        task = self._task(suite, run.task)
        config = self.config(suite, run, folder)
        found = load_rankings(drawn_path(task.drawn, folder)) if task.drawn else loaded(config.data)
        kept, card = readable(found, config)
        training, held_out = split(kept, config, run.seed)
        items = encode_rankings(held_out.rankings, card, config.data.too_long, config.data.max_tokens).items
        order = list(range(len(training)))
        random.Random(f"shares {run.seed}").shuffle(order)
        curve: dict[str, list[float]] = {}
        for share in task.shares:
            part = training.select(order[: max(2, round(share * len(order)))])
            report = self._learned(run.optimizer, part, items, config, suite.budget.amount).report()
            metrics = _numbers(report, run.optimizer) | {"rankings": float(len(part))}
            for name, value in {"share": share, **{k: metrics[k] for k in self.curves if k in metrics}}.items():
                curve.setdefault(name, []).append(round(value, 6))
        return RunResult(metrics, curve)

    def _learned(
        self, way: str, part: RankingSet, items: Sequence[RankedRows], config: RewardConfig, epochs: int
    ) -> HeldOut:
        """Return the held-out rankings with the scores that one way of learning gives them."""
        from lmrl.stages.reward.measures import HeldOut

        if way == LONGER:
            return HeldOut.of(items, [np.array(item.answer_lengths, dtype=np.float64) for item in items])
        if way == BAG:
            from lmrl_suites.bag_of_words import bag_of_words

            return HeldOut.of(items, bag_of_words(part.rankings, items))
        from lmrl.models.reward_model import load_reward_model
        from lmrl.stages.reward import reward

        per_step = config.train.rankings_per_step
        steps = max(1, round(epochs * len(part) / per_step))
        if way == "one_pair":
            # As many rows in all: a pair has fewer than a ranking, so a step takes more of them.
            rows = sum(len(ranking.completions) for ranking in part.rankings)
            per_step = round(per_step * rows / (2 * len(part)))
            part = replace(part, rankings=[one_pair(ranking, config.run.seed) for ranking in part.rankings])
        with tempfile.TemporaryDirectory(prefix="lmrl-bench-") as place:
            mine = replace(
                config,
                run=replace(config.run, folder=str(Path(place) / "run")),
                data=replace(config.data, held_out=0),
                train=replace(config.train, steps=steps, rankings_per_step=per_step, warmup_steps=max(1, steps // 10)),
            )
            made = reward(mine, rankings=part, progress=False)
            if made.interrupted:
                raise KeyboardInterrupt
            model = load_reward_model(made.folder, device=None if config.run.device == "auto" else config.run.device)
            scores = model.score_rows([row for item in items for row in item.rows], normalised=False)
        return HeldOut.of(items, list(scores.split([len(item.rows) for item in items])))

    def _task(self, suite: Suite, name: str) -> RewardTask:
        return build(RewardTask, suite.tasks[name], f"tasks.{name}")


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table of a recipe, empty where there is something else: building the recipe says so."""
    found = table.get(name, {})
    return found if isinstance(found, Mapping) else {}


def _numbers(report: RewardReport, way: str) -> dict[str, float]:
    """Return a report's figures; lengths are no log odds, and what needs rankings of three is not there for pairs."""
    found = {
        "accuracy": report.accuracy.mean,
        "log_loss": report.log_loss,
        "calibration_error": report.calibration_error,
        "kendall_tau": report.kendall_tau.mean,
        "top_1": report.top_1.mean,
        "accuracy_where_shorter_is_better": report.accuracy_where_shorter_is_better.mean,
        "pairs": float(report.pairs),
    }
    unknown = ("log_loss", "calibration_error") if way == LONGER else ()
    return {name: value for name, value in found.items() if math.isfinite(value) and name not in unknown}
