"""The same questions answered side by side by several models: the table with which people judge them.

Models are loaded one after the other, and all of them draw with the same random numbers, so that two equal models give
equal answers. Leaves out statistics (``lmrl.stages.evaluate.stage``) and how the table is shown
(``comparison_page``, the command).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lmrl.data import PromptSettings, load_rows
from lmrl.data.layouts.parts import template_variables
from lmrl.data.loading.sources import is_table
from lmrl.data.prompts import OriginRow
from lmrl.engines.settings import SamplingSettings
from lmrl.engines.texts import Completion, sample_texts
from lmrl.errors import PromptError, SettingsError
from lmrl.models.loading import LanguageModel, load
from lmrl.rewards.binding import sampled_columns
from lmrl.rewards.resolve import resolve as resolve_reward
from lmrl.rewards.scorable import scorable_rows
from lmrl.seeds import derive_seed
from lmrl.stages.asking import (
    Asked,
    answer_spec,
    as_messages,
    ask,
    chats,
    in_chat,
    model_path,
    require_different,
    short_names,
)
from lmrl.stages.evaluate.scores import sequence_logprobs, why_no_kl
from lmrl.text.card import ModelCard, load_card
from lmrl.text.conversation import with_variables
from lmrl.text.weight_files import require_all_weights
from lmrl.training.devices import torch_device


@dataclass(frozen=True)
class Answer:
    """One model's answer; ``kl`` is log pi - log pi_ref summed over its tokens, in nats."""

    text: str
    tokens: int
    ended: bool
    reward: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Column:
    """One model of the table; ``chatted`` says whether a chat template asked it, or its text was completed."""

    name: str
    path: str
    chatted: bool

    @property
    def heading(self) -> str:
        """The name, with a word for a model that only completes."""
        return self.name if self.chatted else f"{self.name} (completes)"


@dataclass(frozen=True)
class SideBySide:
    """Answers of several models to the same prompts: ``answers[i][j]`` is model j's to prompt i."""

    prompts: list[str]
    columns: list[Column]
    answers: list[list[Answer]]
    sampling: SamplingSettings
    seed: int
    system: str = ""
    reward: str = ""
    reference: str = ""
    notes: list[str] = field(default_factory=list)

    def mean(self, column: int, what: str) -> float | None:
        """Return the mean ``"reward"`` or ``"kl"`` of the model's answers that have one, None where none has."""
        values = [value for row in self.answers if (value := getattr(row[column], what)) is not None]
        return sum(values) / len(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return asdict(self)


def compare(
    models: Sequence[str | Path],
    prompts: Any,
    *,
    names: Sequence[str] = (),
    system: str = "",
    sampling: SamplingSettings | None = None,
    seed: int = 0,
    reward: Any = None,
    reward_settings: Mapping[str, Any] | None = None,
    reference: str | Path = "",
    complete: bool = False,
    prompt_settings: PromptSettings | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    plugins: Any = None,
    progress: bool = True,
) -> SideBySide:
    """Answer every prompt with every model.

    ``models`` are folders (also of runs) or hub ids; ``trust_remote_code`` runs Python code that they come with. A
    prompt is a text, a conversation of messages, or a row of any shape that ``load_prompts`` reads, whose columns go to
    the reward; ``prompts`` may also be a path or a table of pandas or ``datasets``. ``prompt_settings`` map columns. A
    model with a chat template is asked through it (unless ``complete``), any other has the text completed. ``reward``
    and ``reference`` add each answer's reward and its KL to the reference.

    Raises ``SettingsError``, ``ModelError`` or ``PromptError`` before any weights are loaded.
    """
    sampling = sampling or SamplingSettings(max_new_tokens=128)
    judge = None if reward is None else resolve_reward(reward, reward_settings, plugins)
    rows = _scorable(_rows(prompts, prompt_settings or PromptSettings()), judge)
    sides = _sides(models, names, rows, system, complete, trust_remote_code)
    columns = [side.column for side in sides]
    path = model_path(reference) if str(reference) else ""
    reference_card = load_card(path, trust_remote_code=trust_remote_code) if path else None
    require_all_weights(filter(None, [*(column.path for column in columns), path]))
    notes = _notes(columns, system, sampling, bool(path), complete) + _asked_note(columns, rows)
    opened = partial(load, device=torch_device(device), trust_remote_code=trust_remote_code)
    with tqdm(sides, desc="compare", unit="model", disable=not progress) as bar:
        for side in bar:
            bar.set_postfix_str(side.column.name)
            side.answer(opened(side.column.path), sampling, seed, with_logprobs=bool(path))
            _free()
    if reference_card is not None:
        notes += _measure_kl(opened(path), reference_card, sides, sampling.temperature)
    for side in sides if judge is not None else ():
        side.rewards = _rewards(judge, side, rows, system, any(column.chatted for column in columns))
    answers = [list(row) for row in zip(*(side.answers() for side in sides), strict=True)]
    texts, judged_by = [shown(row["prompt"]) for row in rows], "" if judge is None else judge.name
    return SideBySide(texts, columns, answers, sampling, seed, system, judged_by, str(reference) if path else "", notes)


@dataclass
class _Side:
    """One model, what it is asked, and its answers with their log-probabilities, rewards and KLs, None without any."""

    column: Column
    card: ModelCard
    asked: list[Asked]
    completions: list[Completion] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    rewards: list[float | None] | None = None
    kl: list[float] | None = None

    def answer(self, model: LanguageModel, sampling: SamplingSettings, seed: int, with_logprobs: bool) -> None:
        ids = [question.ids for question in self.asked]
        spec = answer_spec(sampling, self.card, in_chat(self.card, self.asked))
        self.completions = sample_texts(model, ids, spec, derive_seed(seed, "compare"))
        if with_logprobs:
            self.own = own_logprobs(model, ids, self.completions, sampling.temperature)

    def answers(self) -> list[Answer]:
        return [
            Answer(made.text, len(made.ids), made.ended, _at(self.rewards, place), _at(self.kl, place))
            for place, made in enumerate(self.completions)
        ]


def _measure_kl(scorer: LanguageModel, reference: ModelCard, sides: Sequence[_Side], temperature: float) -> list[str]:
    """Measure the answers' KL to the reference; return a note on each model for which there is none."""
    notes = []
    for side in sides:
        sampled = [(asked.ids, made.ids) for asked, made in zip(side.asked, side.completions, strict=True)]
        if reason := why_no_kl(side.card, reference, sampled):
            notes.append(f"{side.column.name} {reason}")
            continue
        others = sequence_logprobs(scorer, sampled, temperature)
        side.kl = [mine - other for mine, other in zip(side.own, others, strict=True)]
    return notes


def own_logprobs(
    model: LanguageModel, prompts: Sequence[Sequence[int]], completions: Sequence[Completion], temperature: float
) -> list[float]:
    """Return log pi of each completion, summed: under what it was drawn from, or at temperature 1 if it was greedy."""
    if temperature == 0:
        rows = [(prompt, completion.ids) for prompt, completion in zip(prompts, completions, strict=True)]
        return sequence_logprobs(model, rows)
    return [math.fsum(completion.logprobs) for completion in completions]


def shown(prompt: Any) -> str:
    """Return a prompt as people read it: a text, or a conversation with the speakers' names."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _rows(prompts: Any, settings: PromptSettings) -> list[dict[str, Any]]:
    """Return rows with a prompt; those of other shapes are read as a file's are."""
    items = prompts if is_table(prompts) else list(prompts)
    if is_table(items) or settings.columns or any(_needs_reading(item) for item in items):
        rows: list[dict[str, Any]] = load_rows(settings, items)
    else:
        rows = [copy(item) if isinstance(item, dict) else {"prompt": item} for item in items]
    if not rows:
        raise PromptError("there is no prompt to answer; give at least one")
    for number, row in enumerate(rows, start=1):
        if not row.get("prompt") or not shown(row["prompt"]).strip():
            raise PromptError(f"prompt {number} is empty; expected a text or messages")
        variables = template_variables(row)
        if variables:
            row["prompt"] = with_variables(as_messages(row["prompt"]), variables)
    return rows


def _needs_reading(item: Any) -> bool:
    return isinstance(item, Mapping) and not isinstance(item, OriginRow)


def _scorable(rows: list[dict[str, Any]], judge: Any) -> list[dict[str, Any]]:
    """Return the rows whose columns the reward can read."""
    if judge is None:
        return rows
    origins = [f"prompt {number}" for number in range(1, len(rows) + 1)]
    return [rows[place] for place in scorable_rows([judge], _reward_columns(rows), origins)]


def _sides(
    models: Sequence[str | Path],
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    system: str,
    complete: bool,
    trust_remote_code: bool,
) -> list[_Side]:
    if not models:
        raise SettingsError("no model was named; expected at least one folder or hub id")
    if names and len(names) != len(models):
        raise SettingsError(f"{len(names)} names were given for {len(models)} models; expected one for each")
    paths = [model_path(model) for model in models]
    require_different(names)
    found = list(names) or short_names([str(model) or "stories" for model in models])
    cards = [load_card(path, trust_remote_code=trust_remote_code) for path in paths]
    return [
        _Side(
            Column(name, path, chats(card) and not complete),
            card,
            [ask(card, row["prompt"], system, complete) for row in rows],
        )
        for name, path, card in zip(found, paths, cards, strict=True)
    ]


def _notes(
    columns: Sequence[Column], system: str, sampling: SamplingSettings, with_kl: bool, complete: bool
) -> list[str]:
    notes = []
    plain = [column.name for column in columns if not column.chatted]
    if plain and not complete:
        verb = "completes" if len(plain) == 1 else "complete"
        said = f"{', '.join(plain)} {verb} the text: no chat template, so no roles"
        notes.append(said + (" and no system prompt" if system else ""))
    if complete:
        notes.append("every prompt is completed as text, without a chat template" + (" or system" if system else ""))
    if with_kl and sampling.temperature == 0:
        notes.append("KL of greedy answers is the log-ratio of that one answer at temperature 1, no expectation")
    return notes


def _asked_note(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note on texts that are asked as a user's message, although `lmrl rl` and `eval` complete them."""
    chatted = [column.name for column in columns if column.chatted]
    texts = sum(isinstance(row["prompt"], str) and not getattr(row, "spoken", False) for row in rows)
    if not chatted or not texts:
        return []
    verb = "asks" if len(chatted) == 1 else "ask"
    return [f"{', '.join(chatted)} {verb} {texts} texts as a user's message; --complete completes them as text"]


def _rewards(
    judge: Any, side: _Side, rows: Sequence[Mapping[str, Any]], system: str, as_chat: bool
) -> list[float | None]:
    columns = _reward_columns(rows)
    if as_chat:  # the same for every model, whatever it was asked through: a learned reward has a template of its own
        columns["prompt_messages"] = [list(as_messages(row["prompt"], system)) for row in rows]
    answers = side.completions
    ids, sampled = [question.ids for question in side.asked], [answer.ids for answer in answers]
    columns |= sampled_columns(judge, side.card.codec, ids, sampled, [answer.finish for answer in answers])
    texts = [question.text for question in side.asked]
    scores: list[float | None] = judge(texts, [answer.text for answer in answers], columns).given()
    return scores


def _reward_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "prompt"))
    return {name: [row.get(name) for row in rows] for name in names}


def _at(values: Sequence[float | None] | None, index: int) -> float | None:
    return None if values is None else values[index]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
