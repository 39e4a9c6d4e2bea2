"""The prompts of an evaluation: read as `lmrl rl` reads them, held out as it holds them out, asked model by model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmrl.data import load_prompts
from lmrl.data.records import Prompt
from lmrl.errors import DataError, SettingsError
from lmrl.models.card import ModelCard
from lmrl.stages.chat_prompts import Asked, as_messages, ask, chats, transcript
from lmrl.stages.evaluate_config import EvaluateConfig

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
    config: EvaluateConfig, cards: Sequence[ModelCard], plugins: Any, prompts: Sequence[Any] | None
) -> Questions:
    """Return the prompts to answer.

    The split is ``PromptSet.split`` with ``held_out.prompts`` and ``held_out.seed``, the codec that of the first model
    with a chat template: the same as in an RL run of that model.
    """
    rows = [dict(row) if isinstance(row, Mapping) else {"prompt": row} for row in _rows(config, plugins, prompts)]
    templated = next((card for card in cards if chats(card)), None)
    for row in rows:
        if isinstance(row.get("prompt"), Sequence) and not isinstance(row["prompt"], str) and row["prompt"]:
            row[MESSAGES] = list(row["prompt"])
            if templated is None or config.chat == "off":
                row["prompt"] = transcript(row["prompt"])
    loaded = load_prompts(rows, codec=(templated or cards[0]).codec)
    if config.held_out.prompts:
        try:
            _, loaded = loaded.split(config.held_out.prompts, config.held_out.seed)
        except SettingsError as error:
            raise SettingsError(
                f"held_out.prompts is {config.held_out.prompts}, of {len(loaded)} prompts in all: {error} Lower it, or "
                "set it to 0 to take all of them."
            ) from error
    conversations = loaded.columns.get(MESSAGES, [None] * len(loaded))
    items = []
    for index, text in enumerate(loaded.prompts):
        messages = conversations[index]
        columns = {name: values[index] for name, values in loaded.columns.items() if name != MESSAGES}
        if messages:
            items.append(Question(as_messages(messages, config.system), columns))
        elif config.chat == "on":
            items.append(Question(as_messages(text, config.system), columns))
        else:
            items.append(Question(text, columns, None if loaded.prompt_ids is None else loaded.prompt_ids[index]))
    return Questions(items, loaded.notes[1:], loaded.fingerprint())  # the first says what shape these rows are of


def ask_all(config: EvaluateConfig, card: ModelCard, questions: Questions) -> list[Asked]:
    """Return every question as one model reads it; raises ``PromptError`` for one that leaves no room to answer."""
    asked = []
    for question in questions.items:
        if question.ids is not None:
            if max(question.ids) >= card.vocab_size:
                raise DataError(
                    f"a prompt holds the token id {max(question.ids)}, but {card.path} has {card.vocab_size} ids; give "
                    "prompts as text, which every model can read"
                )
            asked.append(Asked(str(question.prompt), question.ids, chatted=False))
        else:
            plain = config.chat == "off" or isinstance(question.prompt, str)
            asked.append(ask(card, question.prompt, complete=plain))
    return asked


def _rows(config: EvaluateConfig, plugins: Any, prompts: Sequence[Any] | None) -> list[Any]:
    if prompts is not None:
        return list(prompts)
    spec, settings = config.prompts.resolve(plugins)
    return list(spec.build(settings))
