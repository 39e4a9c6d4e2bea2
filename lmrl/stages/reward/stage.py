"""The reward stage: a scalar head on a language model, trained on pairs or N-way rankings, or an ensemble of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lmrl.config import resolved, to_toml
from lmrl.data import RankingSet, load_rankings
from lmrl.data.prompts import dropped_keys
from lmrl.data.splitting import digest_of
from lmrl.errors import DataError, SettingsError
from lmrl.models.reward_model import RewardModel, start_reward_model
from lmrl.models.reward_rows import with_template
from lmrl.plugins import PluginManager
from lmrl.seeds import derive_seed
from lmrl.stages.reward.config import RewardConfig
from lmrl.stages.reward.data import EncodedRankings, encode_rankings
from lmrl.stages.reward.measures import HeldOut, RewardReport
from lmrl.stages.reward.plots import plot_report
from lmrl.stages.reward.reference import normalisation_of, reference_rows
from lmrl.stages.reward.task import RewardTask
from lmrl.text.reward_card import MEMBER, write_normalisation
from lmrl.training.devices import free_folder, make_accelerator
from lmrl.training.plugin_files import plugins_of
from lmrl.training.run import CONFIG_FILE, create_folder, keep_config
from lmrl.training.settings import note_unread
from lmrl.training.supervised import FitResult, fit
from lmrl.training.tracking import check_trackers

STAGE = "reward"
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class RewardTrainingResult:
    """Result of a run: its folder, a checkpoint per member, the held-out report (None without held-out data).

    ``notes`` say what was read and what was left out; ``interrupted`` that the run was stopped and can be resumed.
    """

    folder: Path
    checkpoints: list[Path]
    steps: int
    report: RewardReport | None
    notes: list[str]
    interrupted: bool


def reward(
    config: RewardConfig,
    *,
    rankings: Any = None,
    plugins: PluginManager | None = None,
    resume: bool = False,
    progress: bool = True,
) -> RewardTrainingResult:
    """Train a reward model, or an ensemble, on preferences and write a run folder.

    ``rankings`` (a ``RankingSet``, rows, a path, a table of pandas or ``datasets``) take the place of ``data.path``.
    With ``resume`` the run in ``config.run.folder`` continues from its newest checkpoint, bit for bit on a CPU.
    Everything is checked before the folder is made. The checkpoint loads with ``AutoModelForSequenceClassification``;
    the run's folder is what ``reward.learned.path`` takes.
    """
    plugins = plugins or plugins_of(config.run.folder, resume)
    note_unread(config, plugins)
    accelerator = make_accelerator(config.run)
    if config.train.rankings_per_step < accelerator.num_processes:
        raise SettingsError(
            f"train.rankings_per_step is {config.train.rankings_per_step}; expected at least one for each of the "
            f"{accelerator.num_processes} processes"
        )
    found = _read(rankings, config)
    model = _started(config, config.run.seed, accelerator.device)
    training, held_out = _split(found, config)
    limits = (config.data.too_long, config.data.max_tokens)
    sides = [
        encode_rankings(side.rankings, model.card, *limits) if side else EncodedRankings([])
        for side in (training, held_out)
    ]
    references = reference_rows(config, training, sides[0].items, model, _base(config), accelerator.device)
    members = config.ensemble.members
    if members > 1:
        config = _open_ensemble(config, plugins, accelerator, resume)
    fingerprint = digest_of([training.fingerprint(), held_out.fingerprint() if held_out else ""])
    learn = partial(fit, stage=STAGE, accelerator=accelerator, plugins=plugins, fingerprint=fingerprint)
    fits: list[FitResult] = []
    scores: list[list[Any]] = []
    for number in range(1, members + 1):
        part, again = (config, resume) if members == 1 else _member(config, number, resume)
        if number > 1:
            model = _started(config, part.run.seed, accelerator.device)
        task = RewardTask(model, sides[0].items, sides[1].items, part)
        fits.append(learn(task, config=part, resume=again, progress=progress))
        if fits[-1].interrupted:
            break
        if accelerator.is_main_process and references is not None:
            write_normalisation(fits[-1].checkpoint, normalisation_of(model, references, task.token_budget))
        # The last step ends with an evaluation; a run that was complete already has none in this process.
        last = task.evaluated or task.score(sides[1].items)
        scores.append([row.double().numpy() for row in last])
        accelerator.free_memory()
    folder = fits[0].folder if members == 1 else Path(config.run.folder)
    interrupted = fits[-1].interrupted
    report = None
    if sides[1].items and not interrupted:
        report = _report(sides[1], scores, folder, accelerator.is_main_process)
    notes = [*found.notes, *_dropped(found, model), *_left_out(sides[0], "training"), *_left_out(sides[1], "held-out")]
    return RewardTrainingResult(folder, [part.checkpoint for part in fits], fits[-1].steps, report, notes, interrupted)


def _base(config: RewardConfig) -> str:
    from lmrl.stories import MODEL_PATH

    return config.model or str(MODEL_PATH)


def _started(config: RewardConfig, seed: int, device: Any) -> RewardModel:
    model = start_reward_model(_base(config), seed, device=device, trust_remote_code=config.trust_remote_code)
    if config.data.template == "plain":
        model.card = with_template(model.card)
    return model


def _split(found: RankingSet, config: RewardConfig) -> tuple[RankingSet, RankingSet | None]:
    """Return (training, held-out) rankings."""
    if not config.data.held_out:
        return found, None
    try:
        return found.split(config.data.held_out, config.run.seed)
    except SettingsError as error:
        raise SettingsError(
            f"data.{error} Set data.held_out = 0 to report nothing, or bring more. {'; '.join(found.notes)}"
        ) from error


def _read(rankings: Any, config: RewardConfig) -> RankingSet:
    """Return the rankings of the call, or those of ``data.path``."""
    if rankings is None and not config.data.path:
        raise DataError("no rankings were named; set data.path: lmrl reward data.path=preferences.jsonl")
    found = rankings if isinstance(rankings, RankingSet) else load_rankings(rankings, config.data)
    bare = sum(1 for ranking in found.rankings if not ranking.scores)
    if config.objective.score_margin and bare:
        raise SettingsError(
            f"objective.score_margin is {config.objective.score_margin}, but {bare} of {len(found)} rankings come "
            "without scores; use objective.margin, or data with a column of scores"
        )
    return found


def _open_ensemble(config: RewardConfig, plugins: PluginManager, accelerator: Any, resume: bool) -> RewardConfig:
    """Make the folder that holds the members' runs."""
    folder = config.run.folder or free_folder(STAGE)
    config = replace(config, run=replace(config.run, folder=folder))
    if accelerator.is_main_process and not resume:
        check_trackers(plugins, config)  # an unknown one leaves no folder behind
        create_folder(Path(folder), to_toml(resolved(config, plugins)), plugins, STAGE)
    elif accelerator.is_main_process:
        keep_config(config, plugins)
    accelerator.wait_for_everyone()
    return config


def _member(config: RewardConfig, number: int, resume: bool) -> tuple[RewardConfig, bool]:
    """Return the configuration of one member, and whether its run has begun."""
    folder = Path(config.run.folder) / f"{MEMBER}{number}"
    run = replace(config.run, folder=str(folder), seed=derive_seed(config.run.seed, "member", number))
    part = replace(config, run=run, ensemble=replace(config.ensemble, members=1))
    return part, resume and (folder / CONFIG_FILE).exists()


def _report(held_out: EncodedRankings, scores: Sequence[Sequence[Any]], folder: Path, write: bool) -> RewardReport:
    """Measure the mean of the members' raw scores; margins do not depend on their offsets."""
    each = [HeldOut.of(held_out.items, member).accuracy() for member in scores] if len(scores) > 1 else []
    together = HeldOut.of(held_out.items, [np.mean(rows, axis=0) for rows in zip(*scores, strict=True)])
    report = together.report(each)
    if write:
        text = json.dumps(_plain(dataclasses.asdict(report)), indent=2, allow_nan=False)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        plot_report(folder, report, together)
    return report


def _plain(value: Any) -> Any:
    """Return what JSON can hold: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dropped(found: RankingSet, model: RewardModel) -> list[str]:
    conversations = [item for ranking in found.rankings for item in (ranking.prompt, *ranking.completions)]
    return dropped_keys(model.card.codec, conversations, "the rankings")


def _left_out(encoded: EncodedRankings, side: str) -> list[str]:
    return [f"{side} data: {count} {reason}" for reason, count in encoded.skipped.items()]
