"""Plan of an evaluation, checked before any weights are loaded and any folder is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmrl.annotators.annotators import Annotator, AnnotatorSettings, build_annotator
from lmrl.config import resolved
from lmrl.engines.texts import sampling_spec
from lmrl.errors import LmrlError, SettingsError, unknown
from lmrl.rewards.function import RewardFunction
from lmrl.rewards.resolve import resolve as resolve_reward
from lmrl.seeds import derive_seed
from lmrl.stages.asking import Asked, model_path, require_different, short_names
from lmrl.stages.evaluate.comparison import Column
from lmrl.stages.evaluate.config import EvaluateConfig
from lmrl.stages.evaluate.prompts import Questions, ask_one, held_out_questions
from lmrl.stages.evaluate.texts import ReferenceTexts, TextRow, read_texts, text_rows, why_not
from lmrl.stories.recognise import note_story_reward, refuse_story_defaults
from lmrl.text.card import ModelCard, load_card
from lmrl.text.weight_files import require_all_weights
from lmrl.training.settings import note_unread


@dataclass
class Plan:
    """Everything that is known before the first model is loaded."""

    config: EvaluateConfig
    plugins: Any
    columns: list[Column]
    cards: list[ModelCard]
    rewards: dict[str, RewardFunction]
    annotator: Annotator | None
    questions: Questions
    asked: list[list[Asked]]
    reference: str
    texts: ReferenceTexts
    text_rows: list[list[TextRow | None] | None]
    notes: list[str]
    best_of: int | None

    @property
    def baseline(self) -> int:
        """Number of the model that the others are compared with."""
        return self.place(self.config.wins.baseline, "wins.baseline")

    def place(self, name: str, setting: str) -> int:
        """Return the number of a model that a setting names; the first one if it names none."""
        names = [column.name for column in self.columns]
        if name and name not in names:
            raise SettingsError(f"{setting}: {unknown('model', name, names)}")
        return names.index(name) if name else 0


def make_plan(config: EvaluateConfig, plugins: Any, prompts: Sequence[Any] | None) -> Plan:
    """Return the plan of an evaluation; whatever can be known to be wrong is an error here."""
    resolved(config, plugins)
    note_unread(config, plugins)
    models = config.models or [""]
    if config.names and len(config.names) != len(models):
        raise SettingsError(f"{len(config.names)} names were given for {len(models)} models; expected one for each")
    paths = [model_path(model) for model in models]
    names = list(config.names) or short_names([model or "stories" for model in models])
    require_different(names)
    trust = config.trust_remote_code
    cards = [load_card(path, trust_remote_code=trust) for path in paths]
    _refuse_defaults(config, cards, prompts is not None)
    named = ["happy_end"] if config.rewards is None else config.rewards
    config = replace(config, rewards=named)
    rewards = {name: resolve_reward(name, config.reward_settings.get(name), plugins) for name in named}
    _check_rewards(config, rewards)
    reference = model_path(config.reference) if config.reference else ""
    if reference:
        load_card(reference, trust_remote_code=trust)
    require_all_weights(filter(None, [*paths, reference]))
    questions = held_out_questions(config, cards, plugins, prompts, list(rewards.values()))
    asked = [[ask_one(config, card, question) for question in questions.items] for card in cards]
    for card in cards:
        sampling_spec(config.sampling, card)
    texts = read_texts(config.texts)
    notes = [*questions.notes, *texts.notes]
    plan = Plan(
        config=config,
        plugins=plugins,
        columns=[
            Column(name, path, any(one.chatted for one in rows))
            for name, path, rows in zip(names, paths, asked, strict=True)
        ],
        cards=cards,
        rewards=rewards,
        annotator=_annotator(config, plugins),
        questions=questions,
        asked=asked,
        reference=reference,
        texts=texts,
        text_rows=_text_rows(config, texts, names, cards, notes),
        notes=notes,
        best_of=None,
    )
    plan.place(config.wins.baseline, "wins.baseline")
    if config.best_of.n:
        plan.best_of = plan.place(config.best_of.model, "best_of.model")
    return plan


def _refuse_defaults(config: EvaluateConfig, cards: Sequence[ModelCard], prompts_given: bool) -> None:
    missing = {}
    if not prompts_given and config.prompts.is_default:
        missing["prompts.name"] = "prompts.name=file with prompts.file.path=FILE"
    if config.rewards is None:
        missing["rewards"] = "rewards=[NAME] (or rewards=[] for none)"
    for card in cards:
        if prompts_given and missing:
            note_story_reward(card, "rewards")
        else:
            refuse_story_defaults(card, missing)


def _check_rewards(config: EvaluateConfig, rewards: Mapping[str, RewardFunction]) -> None:
    wanted = {"wins.reward": config.wins.reward if config.wins.kind == "reward" else ""}
    if config.best_of.n:
        wanted["best_of.reward"] = config.best_of.reward
        if not rewards:
            raise SettingsError("best_of.n is set, but rewards is empty; expected at least one to choose by")
    for setting, name in wanted.items():
        if name and name not in rewards:
            raise SettingsError(f"{setting}: {unknown('reward', name, rewards)} Add it to rewards.")
    for name in (*config.reward_settings, *config.bounds):
        if name not in rewards:
            raise SettingsError(f"settings or bounds are given for {unknown('reward', name, rewards)}")


def _annotator(config: EvaluateConfig, plugins: Any) -> Annotator | None:
    if config.wins.kind not in ("judge", "person"):
        return None
    settings = AnnotatorSettings(kind=config.wins.kind, judge=config.wins.judge)
    return build_annotator(settings, plugins, seed=derive_seed(config.run.seed, "annotator"))


def _text_rows(
    config: EvaluateConfig, texts: ReferenceTexts, names: Sequence[str], cards: Sequence[ModelCard], notes: list[str]
) -> list[list[TextRow | None] | None]:
    """Return each model's rows of the reference texts, the same examples for all of them; None where it has none."""
    if not texts:
        return [None] * len(cards)
    shortest = min(card.context_length for card in cards)
    context = config.texts.context or shortest
    if context > shortest or context < 2:
        raise SettingsError(
            f"texts.context is {context}; expected 2 to {shortest}, the shortest of the models' contexts"
        )
    found: list[list[TextRow | None] | None] = []
    for name, card in zip(names, cards, strict=True):
        try:
            found.append(text_rows(texts, card, context))
        except LmrlError as error:
            notes.append(f"{name} has no perplexity of the reference texts: {why_not(error)}")
            found.append(None)
    if texts.examples:
        complete = [rows for rows in found if rows is not None]
        fitting = [all(rows[i] is not None for rows in complete) for i in range(len(texts.examples))]
        if not any(fitting):
            raise SettingsError(f"none of the {len(fitting)} reference examples fits into {context} tokens")
        if not all(fitting):
            left_out = len(fitting) - sum(fitting)
            notes.append(f"{left_out} reference examples were left out: longer than {context} tokens, or no answer")
        found = [rows and [row for row, fits in zip(rows, fitting, strict=True) if fits] for rows in found]
    return found
