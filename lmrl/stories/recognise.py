"""Recognizing models of the embedded story world, for which prompts and reward have defaults."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from lmrl.errors import LmrlError, SettingsError

if TYPE_CHECKING:
    from lmrl.text.card import ModelCard

logger = logging.getLogger(__name__)
SAMPLE = "Once upon a time, there was a little girl named Lily. She found a red ball in the garden."


def is_story_model(card: ModelCard) -> bool:
    """True if a model has the tokenizer of the embedded story model, as it and runs that start from it have.

    Tokens that a chat template adds make no difference.
    """
    try:
        return tuple(card.codec.encode_plain(SAMPLE)) == _story_ids()
    except Exception:  # a tokenizer that cannot read the text is another one
        return False


def refuse_story_defaults(
    card: ModelCard, missing: Mapping[str, str], besides: str = "", error: type[LmrlError] = SettingsError
) -> None:
    """Raise ``error`` if ``missing`` settings would get the story world's defaults with another model.

    ``missing`` holds, by the name of a setting that nobody has set, what to set; ``besides`` is a further way out.
    """
    if not missing or is_story_model(card):
        return
    verb, default = ("is", "its default belongs") if len(missing) == 1 else ("are", "their defaults belong")
    raise error(
        f"{' and '.join(missing)} {verb} missing, and {default} to the embedded story model, but the model is "
        f"{card.path}; expected your own. Set {' and '.join(missing.values())}{besides}. Version 0.1 used those "
        "of the stories; docs/migration.md lists what changed."
    )


def note_story_reward(card: ModelCard, setting: str) -> None:
    """Log that responses of another model to prompts of its own are scored by the story world's reward."""
    if not is_story_model(card):
        logger.warning(
            "%s is missing, so responses of %s to the prompts that were given are scored by happy_end, the reward of "
            "the embedded stories; set it to the reward that you mean",
            setting,
            card.path,
        )


@cache
def _story_ids() -> tuple[int, ...]:
    from lmrl.stories import MODEL_PATH
    from lmrl.text.card import load_codec

    return tuple(load_codec(MODEL_PATH).encode_plain(SAMPLE))
