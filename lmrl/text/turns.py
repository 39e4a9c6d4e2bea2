"""The token that ends an assistant's turn, among the ids that end a response. Needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lmrl.text.card import ModelCard
from lmrl.text.chat_template import template_end_id

if TYPE_CHECKING:
    from lmrl.models.loading import LanguageModel


def with_turn_end(card: ModelCard) -> ModelCard:
    """Return the card with the chat template's end-of-turn token among its EOS ids.

    Base models often name only the end of a text as EOS, while their template ends a turn with another token. A card
    without a template, or whose template ends a turn with plain text or EOS, stays as it is.
    """
    end = template_end_id(card.codec)
    return card if end is None or end in card.eos_ids else replace(card, eos_ids=(*card.eos_ids, end))


def holds_turns(card: ModelCard, rows: Iterable[Sequence[int]]) -> bool:
    """Return whether token ids hold the template's end-of-turn token, so that they are a rendered conversation."""
    end = template_end_id(card.codec)
    return end is not None and any(end in row for row in rows)


def end_turns(model: LanguageModel) -> LanguageModel:
    """Return the model with the end-of-turn token as an EOS of its card and of the checkpoints that it is saved to."""
    card = with_turn_end(model.card)
    record_ends(model.model, card.eos_ids)
    return replace(model, card=card)


def record_ends(model: object, eos_ids: Sequence[int]) -> None:
    """Write these ids into a transformers model's generation configuration, which is saved with it."""
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id = list(eos_ids)
