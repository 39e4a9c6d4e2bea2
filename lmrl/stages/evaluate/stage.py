"""Evaluation of one or several models on held-out prompts: rewards, KL, win rates, perplexity, diversity, length.

Models are loaded one after the other and answer with the same random numbers. Answers are kept as soon as they are
there, so a run that was stopped resumes with the models that are missing. Changes no training state.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lmrl.config import resolved, to_toml
from lmrl.engines.opening import open_engine
from lmrl.engines.protocol import Engine
from lmrl.engines.texts import sample_texts
from lmrl.errors import SettingsError, unknown
from lmrl.models.loading import LanguageModel, load
from lmrl.rewards.binding import sampled_columns
from lmrl.seeds import derive_seed
from lmrl.stages.asking import answer_spec, in_chat
from lmrl.stages.evaluate.answers import Answers, first_samples, new_answers, restore, store, weighted_means
from lmrl.stages.evaluate.comparison import Column, SideBySide, own_logprobs
from lmrl.stages.evaluate.config import EvaluateConfig
from lmrl.stages.evaluate.measures import (
    Measure,
    answer_measures,
    diversity_measures,
    measures_found,
    value,
)
from lmrl.stages.evaluate.plan import Plan, make_plan
from lmrl.stages.evaluate.scores import sequence_logprobs, why_no_kl
from lmrl.stages.evaluate.texts import row_nats, text_measures
from lmrl.stages.evaluate.wins import WinRate, win_rate
from lmrl.statistics import best_of_kl, best_of_weights
from lmrl.statistics.intervals import Interval, RewardScale
from lmrl.text.card import ModelCard
from lmrl.training.devices import torch_device, weights_dtype
from lmrl.training.plugin_files import plugins_of
from lmrl.training.run import CONFIG_FILE, create_folder, next_free_folder


@dataclass(frozen=True)
class EvaluateResult:
    """Result of an evaluation: for each column (a model, or best-of-N) its measures by key, with their intervals.

    ``samples`` are answers to the first prompts, side by side; ``wins`` the counts behind the win rates.
    """

    folder: Path
    columns: list[Column]
    measures: list[Measure]
    values: list[dict[str, Interval]]
    wins: dict[str, WinRate]
    samples: SideBySide
    prompts: int
    samples_per_prompt: int
    notes: list[str]

    def value(self, column: str, key: str) -> Interval:
        """Return a measure of a column by its name, such as ``("RLHF", "reward:happy_end")``."""
        names = [one.name for one in self.columns]
        if column not in names:
            raise SettingsError(unknown("column", column, names))
        found = self.values[names.index(column)]
        if key not in found:
            raise SettingsError(unknown("measure", key, found))
        return found[key]


def evaluate(
    config: EvaluateConfig,
    *,
    prompts: Sequence[Any] | None = None,
    plugins: Any = None,
    resume: bool = False,
    progress: bool = True,
) -> EvaluateResult:
    """Evaluate models on held-out prompts and write a run folder: results.json, answers, plots and a page.

    ``prompts`` (texts, or rows with a ``prompt`` and further columns) take the place of the configuration's. With
    ``resume`` the answers that ``config.run.folder`` holds are not sampled again. Everything is checked before the
    folder is made and before any weights are loaded.
    """
    plan = make_plan(config, plugins or plugins_of(config.run.folder, resume), prompts)
    with closing(open_engine(*plan.config.engine.resolve(plan.plugins))) as engine:
        folder = _open_folder(plan, resume)
        columns, texts = _answer(plan, folder, engine, resume, progress)
    result = _measure(plan, folder, columns, texts)
    if resume:  # what only measures the answers may be another now
        partial = folder / f"{CONFIG_FILE}.partial"
        partial.write_text(to_toml(resolved(plan.config, plan.plugins)), encoding="utf-8")
        partial.replace(folder / CONFIG_FILE)
    from lmrl.stages.evaluate.report import write_report

    write_report(result)
    return result


def _open_folder(plan: Plan, resume: bool) -> Path:
    config = plan.config
    if not config.run.folder:
        plan.config = config = replace(
            config, run=replace(config.run, folder=str(next_free_folder(Path("runs"), "eval")))
        )
    folder = Path(config.run.folder)
    if not resume:
        create_folder(folder, to_toml(resolved(config, plan.plugins)), plan.plugins, stage="eval")
    return folder


def _answer(
    plan: Plan, folder: Path, engine: Engine, resume: bool, progress: bool
) -> tuple[list[Answers], list[dict[str, Interval]]]:
    """Sample with every model, then measure the KL with the reference; return the columns and the texts' measures."""
    config, columns = plan.config, []
    texts: list[dict[str, Interval]] = []
    samples, fingerprint = config.held_out.samples_per_prompt, plan.questions.fingerprint
    extra: Answers | None = None
    bar = tqdm(total=len(plan.columns) + bool(plan.reference), desc="eval", unit="model", disable=not progress)
    with bar:
        for place, column in enumerate(plan.columns):
            bar.set_postfix_str(column.name)
            lazily = _Lazy(column.path, config)

            def sampled(stem: str, count: int, purpose: str, place: int = place, lazily: _Lazy = lazily) -> Answers:
                asked = plan.asked[place]
                kept = restore(folder, stem, plan.columns[place].name, asked, count, fingerprint) if resume else None
                if kept is not None:
                    return kept
                ids = [one.ids for one in asked for _ in range(count)]
                spec = answer_spec(config.sampling, plan.cards[place], in_chat(plan.cards[place], asked))
                groups = [number for number, _ in enumerate(asked) for _ in range(count)]
                drawn = sample_texts(lazily.model, ids, spec, derive_seed(config.run.seed, purpose), engine, groups)
                logprobs = own_logprobs(lazily.model, ids, drawn, config.sampling.temperature)
                answers = new_answers(plan.columns[place].name, asked, count, drawn, logprobs)
                store(folder, stem, answers, fingerprint)
                return answers

            columns.append(sampled(f"{place + 1}-{_stem(column.name)}", samples, "evaluation"))
            if plan.best_of == place:
                drawn = max(config.best_of.samples, config.best_of.n)
                extra = sampled(f"best-of-{drawn}-{_stem(column.name)}", drawn, "best of")
            texts.append(_text_measures(plan, place, lazily))
            lazily.free()
            bar.update()
        if plan.reference:
            bar.set_postfix_str("reference")
            _add_kl(plan, columns)
            bar.update()
        _add_rewards(plan, columns, plan.cards)
        if extra is not None and plan.best_of is not None:
            _add_rewards(plan, [extra], [plan.cards[plan.best_of]])
            columns.append(_best_of(plan, extra))
            texts.append({})
    return columns, texts


class _Lazy:
    """A model that is loaded when it is first needed: on a resume perhaps never."""

    def __init__(self, path: str, config: EvaluateConfig) -> None:
        self._path, self._config = path, config
        self._model: LanguageModel | None = None

    @property
    def model(self) -> LanguageModel:
        if self._model is None:
            self._model = _loaded(self._path, self._config)
        return self._model

    def free(self) -> None:
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _loaded(path: str, config: EvaluateConfig) -> LanguageModel:
    return load(
        path,
        device=torch_device(config.run.device),
        dtype=weights_dtype(config.run.precision),
        trust_remote_code=config.trust_remote_code,
    )


def _text_measures(plan: Plan, place: int, lazily: _Lazy) -> dict[str, Interval]:
    rows = plan.text_rows[place]
    if not rows:
        return {}
    present = [row for row in rows if row is not None]
    return text_measures(row_nats(lazily.model, present), present, plan.config.run.seed)


def _add_kl(plan: Plan, columns: Sequence[Answers]) -> None:
    reference = _loaded(plan.reference, plan.config)
    temperature = plan.config.sampling.temperature
    for card, answers in zip(plan.cards, columns, strict=True):
        rows = answers.sampled()
        if reason := why_no_kl(card, reference.card, rows):
            plan.notes.append(f"{answers.name} {reason}")
            continue
        others = sequence_logprobs(reference, rows, temperature)
        answers.kl = [mine - other for mine, other in zip(answers.logprobs, others, strict=True)]
    if temperature == 0:
        plan.notes.append("KL of greedy answers is the log-ratio of that one answer at temperature 1, no expectation")


def _add_rewards(plan: Plan, columns: Sequence[Answers], cards: Sequence[ModelCard]) -> None:
    by_prompt = plan.questions.columns()
    for answers, card in zip(columns, cards, strict=True):
        prompts = [answers.asked[group].text for group in answers.groups]
        rows = {name: [values[group] for group in answers.groups] for name, values in by_prompt.items()}
        ids = [asked for asked, _ in answers.sampled()]
        sampled, reasons = [one.ids for one in answers.completions], [one.finish for one in answers.completions]
        for name, reward in plan.rewards.items():
            found = rows | sampled_columns(reward, card.codec, ids, sampled, reasons)
            answers.rewards[name] = reward(prompts, answers.texts, found).given()
            if missing := answers.rewards[name].count(None):
                plan.notes.append(
                    f"{missing} of {len(answers.texts)} answers of {answers.name} have no score by {name} and are in "
                    "no mean of it"
                )


def _best_of(plan: Plan, drawn: Answers) -> Answers:
    """Return the column of best-of-N: every sample with its chance of being the best of N."""
    settings = plan.config.best_of
    chooser = settings.reward or list(plan.rewards)[-1]
    count = len(drawn.groups) // len(drawn.asked)
    weights: list[float] = []
    chosen: list[int] = []
    for start in range(0, len(drawn.groups), count):
        scores = [-math.inf if score is None else score for score in drawn.rewards[chooser][start : start + count]]
        weights += best_of_weights(scores, settings.n)
        chosen.append(start + max(range(settings.n), key=lambda place, scores=scores: scores[place]))  # type: ignore[misc]
    place = plan.best_of or 0
    plan.columns.append(replace(plan.columns[place], name=f"{drawn.name}, best of {settings.n}"))
    plan.notes.append(
        f"best of {settings.n}: {count} answers of {drawn.name} to each prompt, chosen by {chooser}; its KL is the "
        "bound log N - (N - 1) / N, against the model that is sampled"
    )
    return replace(drawn, name=plan.columns[-1].name, weights=weights, shown=chosen)


def _measure(
    plan: Plan, folder: Path, columns: Sequence[Answers], texts: Sequence[Mapping[str, Interval]]
) -> EvaluateResult:
    config, seed = plan.config, derive_seed(plan.config.run.seed, "bootstrap")
    values = [answer_measures(answers, seed) | dict(found) for answers, found in zip(columns, texts, strict=True)]
    for mine, found in zip(values, diversity_measures(columns), strict=True):
        mine |= found
    baseline = plan.baseline
    units = [
        {name: weighted_means(rewards, answers) for name, rewards in answers.rewards.items()} for answers in columns
    ]
    for name, reward in plan.rewards.items():
        seen = [score for answers in columns for score in answers.rewards[name] if score is not None]
        if not seen:
            continue
        scale = RewardScale(seen, _bounds(config, name, seen), reward.bounds, seed)
        for place, mine in enumerate(values):
            own, other = np.array(units[place][name]), np.array(units[baseline][name])
            known, both = np.isfinite(own), np.isfinite(own) & np.isfinite(other)
            if known.any():
                mine[f"reward:{name}"] = scale.interval(own[known])
            if place != baseline and both.any():
                mine[f"difference:{name}"] = scale.difference(own[both], other[both])
    wins: dict[str, WinRate] = {}
    if len(columns) > 1 and (plan.annotator or (config.wins.kind == "reward" and plan.rewards)):
        judge = config.wins.reward or next(iter(plan.rewards), "")
        for place, answers in enumerate(columns):
            if place != baseline:
                found_rate = win_rate(
                    answers, columns[baseline], plan.questions, plan.annotator, judge, config.wins.tolerance
                )
                wins[answers.name] = found_rate
                values[place]["wins"] = found_rate.rate
        plan.notes.extend(_unanswered(plan, wins))
    if config.best_of.n and plan.best_of is not None and plan.reference == plan.columns[plan.best_of].path:
        values[-1]["kl"] = value(best_of_kl(config.best_of.n), len(plan.questions.items))
    return EvaluateResult(
        folder=folder,
        columns=plan.columns,
        measures=measures_found(values, list(plan.rewards), plan.columns[baseline].name),
        values=values,
        wins=wins,
        samples=first_samples(plan, columns),
        prompts=len(plan.questions.items),
        samples_per_prompt=config.held_out.samples_per_prompt,
        notes=plan.notes,
    )


def _unanswered(plan: Plan, wins: Mapping[str, WinRate]) -> list[str]:
    """Return a note on comparisons without a verdict, which count in no win rate, and on why there is none."""
    count = sum(rate.unanswered for rate in wins.values())
    if not count:
        return []
    counts: Mapping[str, int] = getattr(plan.annotator, "counts", {})
    reasons = [f"{number} replies {name}" for name, number in counts.items() if name.startswith("unreadable (")]
    reasons += [f"{counts['failed']} questions failed"] if counts.get("failed") else []
    stopped = getattr(plan.annotator, "stopped", "")
    reasons += [stopped] if stopped else []
    total = count + sum(rate.wins + rate.ties + rate.losses for rate in wins.values())
    return [f"{count} of {total} comparisons have no verdict and count in no win rate: {'; '.join(reasons)}"]


def _bounds(config: EvaluateConfig, name: str, seen: Sequence[float]) -> list[float] | None:
    """Return the bounds that the settings give to a reward; raises ``SettingsError`` if a score lies outside."""
    given = config.bounds.get(name)
    if given and not (given[0] <= min(seen) and max(seen) <= given[1]):
        raise SettingsError(
            f"bounds.{name} is {given}, but scores from {min(seen):g} to {max(seen):g} were seen; expected bounds that "
            f"hold them. The answers are kept: lmrl eval --resume {config.run.folder} 'bounds.{name}=[...]'"
        )
    return given


def _stem(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
