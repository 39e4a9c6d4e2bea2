"""Questions to a model: one with a chat template is chatted with, one without has the text completed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmrl.engines.protocol import SamplingSpec
from lmrl.engines.settings import SamplingSettings
from lmrl.engines.texts import sampling_spec
from lmrl.errors import PromptError, SettingsError
from lmrl.text.chat_template import prompt_ids
from lmrl.text.conversation import is_prefilled, variables_of, with_variables
from lmrl.text.folders import PROCESSOR_FILE, model_folder
from lmrl.text.turns import holds_turns

if TYPE_CHECKING:
    from lmrl.text.card import ModelCard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A prompt as one model reads it: its text, its token ids, and whether a chat template made them."""

    text: str
    ids: list[int]
    chatted: bool


EMBEDDED = "stories"
"""Stands for the embedded story model wherever a model is named, unless a folder has that name."""


def model_path(name: str | Path) -> str:
    """Return the folder or hub id that a model's name stands for; empty or "stories" is the embedded story model.

    The log says once of a checkpoint if it comes without the restriction that it was trained with.
    """
    from lmrl.stories import MODEL_PATH

    if not str(name) or (str(name) == EMBEDDED and not Path(EMBEDDED).is_dir()):
        return str(MODEL_PATH)
    _note_processor(str(name))
    return str(name)


@cache
def _note_processor(name: str) -> None:
    if (model_folder(name) / PROCESSOR_FILE).exists():
        logger.warning(
            "%s was trained with a logits processor that restricts what it draws, such as NLPO's mask policy; here it "
            "draws from all of its vocabulary, so its answers may be worse than those of its run's evaluation",
            name,
        )


def short_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each model: its folder's, or its run's and folder's, or the whole path if that is taken.

    >>> short_names(["runs/sft-1", "runs/rl-1/checkpoint-000050"])
    ['sft-1', 'rl-1/checkpoint-000050']
    """
    short = []
    for path in paths:
        parts = Path(path).parts
        inside = bool(parts) and parts[-1].startswith("checkpoint")
        short.append("/".join(parts[-2:]) if inside else parts[-1] if parts else path)
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


def require_different(names: Sequence[str]) -> None:
    """Raise ``SettingsError`` if two models have one name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingsError(f"two models are called {twice!r}; give them other names, as in --names base,RLHF")


def chats(card: ModelCard) -> bool:
    """Say whether a model has a chat template, so that it can be chatted with."""
    return bool(card.codec.chat_template)


def as_messages(prompt: Any, system: str = "") -> tuple[Mapping[str, Any], ...]:
    """Return a prompt as messages: a text is what the user says, and ``system`` stands in front.

    A conversation that brings a system message of its own keeps it.
    """
    turns: list[Mapping[str, Any]] = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, str):
        turns = [dict(turn) for turn in prompt]
    if system and not (turns and turns[0]["role"] == "system"):
        turns.insert(0, {"role": "system", "content": system})
    return with_variables(turns, variables_of(prompt))


def ask(card: ModelCard, prompt: Any, system: str = "", complete: bool = False) -> Asked:
    """Return the prompt as this model reads it.

    With a chat template it is rendered with the beginning of the answer (``complete`` leaves the template aside).
    Without one, the text is completed: a text as it is, a single question as its text, a longer conversation as a
    transcript; ``system`` is left out, because such a model knows no roles. Raises ``PromptError`` for a prompt that
    leaves no room in the model's context.
    """
    for turn in as_messages(prompt, system):
        refuse_broken(turn["content"])
    if chats(card) and not complete:
        asked = Asked(*prompt_ids(card.codec, as_messages(prompt, system)), chatted=True)
    else:
        plain = prompt if isinstance(prompt, str) else transcript(prompt)
        asked = Asked(*prompt_ids(card.codec, plain), chatted=False)
    if not asked.ids:
        raise PromptError(f"{card.path}: the prompt {_excerpt(asked.text)} has no tokens; expected some text")
    if len(asked.ids) >= card.context_length:
        raise PromptError(
            f"{card.path}: the prompt {_excerpt(asked.text)} has {len(asked.ids)} tokens, which leaves no room in the "
            f"context of {card.context_length}; shorten it, or leave it out"
        )
    return asked


def answer_spec(settings: SamplingSettings, card: ModelCard, chatted: bool) -> SamplingSpec:
    """Return how a model's answers are sampled: in a chat, the template's end-of-turn token ends them too."""
    return sampling_spec(settings, card, in_turns=chatted)


def in_chat(card: ModelCard, asked: Sequence[Asked]) -> bool:
    """Return whether these prompts are conversations: asked through the template, or texts of rendered ones."""
    return any(one.chatted for one in asked) or holds_turns(card, [one.ids for one in asked])


def transcript(messages: Sequence[Any]) -> str:
    """Return a conversation as plain text: the words alone of a single question, otherwise with the roles' names.

    >>> transcript([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
    ...     {"role": "user", "content": "Go"}])
    'User: Hi\\nAssistant: Yes?\\nUser: Go\\nAssistant:'
    """
    spoken = [turn for turn in messages if turn["role"] != "system"]
    if len(spoken) == 1 and spoken[0]["role"] == "user":
        return str(spoken[0]["content"])
    lines = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages]
    return "\n".join(lines if is_prefilled(messages) else [*lines, "Assistant:"])


def refuse_broken(text: str) -> None:
    """Raise ``PromptError`` for a text with half a character, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{_excerpt(text)} holds half a character at place {error.start + 1}: a byte that is not UTF-8, or "
            "an emoji that was cut; write it anew"
        ) from error


def _excerpt(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else f"{text[:width]}...")
