"""The prompts of an evaluation: read as `lmrl rl` reads them, held out as it holds them out, asked model by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from lmrl.data import PromptSet, load_prompts, load_rows
from lmrl.data.builtin import prompt_settings
from lmrl.data.layouts.parts import template_variables
from lmrl.data.notes import is_loss_of_data
from lmrl.data.prompts import OriginRow
from lmrl.data.records import Prompt
from lmrl.errors import DataError, LmrlError, PromptError, SettingsError
from lmrl.rewards.function import RewardFunction
from lmrl.rewards.scorable import scorable_rows
from lmrl.stages.asking import Asked, as_messages, ask, chats, transcript
from lmrl.stages.evaluate.config import EvaluateConfig
from lmrl.text.card import ModelCard
from lmrl.text.conversation import with_variables

MESSAGES = "prompt_messages"
"""Column that holds a prompt's conversation, for rewards that render it themselves."""


@dataclass(frozen=True)
class Question:
    """One held-out prompt with the columns of its row; ``ids`` where the data gave token ids and nothing else."""

    prompt: Prompt
    columns: Mapping[str, Any]
    ids: list[int] | None = None


@dataclass(frozen=True)
class Questions:
    """The held-out prompts, what was noted while they were read, and their fingerprint."""

    items: list[Question]
    notes: tuple[str, ...]
    fingerprint: str

    def columns(self) -> dict[str, list[Any]]:
        """Return the rows' columns by name, with the conversations where there are any."""
        names = list(dict.fromkeys(name for item in self.items for name in item.columns))
        columns: dict[str, list[Any]] = {name: [item.columns.get(name) for item in self.items] for name in names}
        if any(not isinstance(item.prompt, str) for item in self.items):
            columns[MESSAGES] = [None if isinstance(i.prompt, str) else list(i.prompt) for i in self.items]
        return columns


def held_out_questions(
    config: EvaluateConfig,
    cards: Sequence[ModelCard],
    plugins: Any,
    prompts: Sequence[Any] | None,
    rewards: Sequence[RewardFunction] = (),
) -> Questions:
    """Return the prompts to answer.

    The split is ``PromptSet.split`` with ``held_out.prompts`` and ``held_out.seed``, the codec that of the first model
    with a chat template: the same as in an RL run of that model. As there, prompts whose answer a reward cannot read
    and prompts that leave some model no room to respond are skipped before the split and counted.
    """
    rows = [copy(row) for row in _rows(config, plugins, prompts)]
    templated = next((card for card in cards if chats(card)), None)
    for row in rows:
        if config.chat == "off" and isinstance(row, OriginRow):
            row.spoken = False
        if isinstance(row.get("prompt"), Sequence) and not isinstance(row["prompt"], str) and row["prompt"]:
            row[MESSAGES] = list(row["prompt"])
            if templated is None or config.chat == "off":
                row["prompt"] = transcript(row["prompt"])
    loaded = load_prompts(rows, codec=(templated or cards[0]).codec)
    loaded = loaded.select(scorable_rows(rewards, loaded.columns, loaded.origins, config.on_unreadable))
    notes = [note for note in loaded.notes if is_loss_of_data(note)]  # the others were logged when the rows were read
    kept, reasons = _answerable(config, cards, _questions(config, loaded))
    notes += [f"{count} of {len(loaded)} prompts {reason} and were left out" for reason, count in reasons.items()]
    if len(kept) < len(loaded):
        loaded = loaded.select(kept)
    if config.held_out.prompts:
        try:
            _, loaded = loaded.split(config.held_out.prompts, config.held_out.seed)
        except SettingsError as error:
            raise SettingsError(
                f"held_out.prompts is {config.held_out.prompts}, of {len(loaded)} prompts in all: {error} Lower it, or "
                "set it to 0 to take all of them."
            ) from error
    items = _questions(config, loaded)
    _refuse_idle_system(config, cards, items)
    return Questions(items, tuple(notes), loaded.fingerprint())


def _questions(config: EvaluateConfig, loaded: PromptSet) -> list[Question]:
    conversations = loaded.columns.get(MESSAGES, [None] * len(loaded))
    items = []
    for index, text in enumerate(loaded.prompts):
        messages = conversations[index]
        columns = {name: values[index] for name, values in loaded.columns.items() if name != MESSAGES}
        if messages:
            asked = with_variables(as_messages(messages, config.system), template_variables(columns))
            items.append(Question(asked, columns))
        elif config.chat == "on":
            items.append(Question(as_messages(text, config.system), columns))
        else:
            items.append(Question(text, columns, None if loaded.prompt_ids is None else loaded.prompt_ids[index]))
    return items


def _refuse_idle_system(config: EvaluateConfig, cards: Sequence[ModelCard], items: Sequence[Question]) -> None:
    """Raise ``SettingsError`` for a system prompt that no model is given."""
    if not config.system:
        return
    if not any(map(chats, cards)):
        raise SettingsError("system is set, but no model has a chat template; expected none. Leave it out.")
    if all(isinstance(item.prompt, str) for item in items):
        raise SettingsError(
            "system is set, but all prompts are texts to complete; expected messages, instructions or questions. Leave "
            "it out, or set chat=on to ask every text as a user's message."
        )


def _answerable(
    config: EvaluateConfig, cards: Sequence[ModelCard], questions: Sequence[Question]
) -> tuple[list[int], Counter[str]]:
    """Return the places of the prompts that every model can answer, and why others are left out.

    Raises the first error where no prompt is left.
    """
    refused: dict[int, LmrlError] = {}
    for card in cards:
        for place, question in enumerate(questions):
            try:
                ask_one(config, card, question)
            except PromptError as error:
                refused.setdefault(place, error)
            except DataError as error:
                if isinstance(question.prompt, str):
                    raise
                refused.setdefault(place, error)
    if len(refused) == len(questions):
        raise next(iter(refused.values()))
    why = "leave no room to answer", "are refused by a model's chat template"
    reasons = Counter(why[isinstance(error, DataError)] for error in refused.values())
    return [place for place in range(len(questions)) if place not in refused], reasons


def ask_one(config: EvaluateConfig, card: ModelCard, question: Question) -> Asked:
    """Return a question as one model reads it; raises ``PromptError`` if it leaves no room to answer."""
    if question.ids is None:
        plain = config.chat == "off" or isinstance(question.prompt, str)
        return ask(card, question.prompt, complete=plain)
    if max(question.ids) >= card.vocab_size:
        raise DataError(
            f"a prompt holds the token id {max(question.ids)}, but {card.path} has {card.vocab_size} ids; give prompts "
            "as text, which every model can read"
        )
    if len(question.ids) >= card.context_length:
        raise PromptError(
            f"{card.path}: a prompt of {len(question.ids)} ids fills its context of {card.context_length}"
        )
    return Asked(str(question.prompt), question.ids, chatted=False)


def _row(row: Any) -> dict[str, Any]:
    return dict(row) if isinstance(row, Mapping) else {"prompt": row}


def _rows(config: EvaluateConfig, plugins: Any, prompts: Any) -> list[Any]:
    if prompts is not None:
        return load_rows(prompt_settings(config.prompts), prompts)
    spec, settings = config.prompts.resolve(plugins)
    return [row if isinstance(row, dict) else _row(row) for row in spec.build(settings)]
