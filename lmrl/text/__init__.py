"""Text and token ids without torch: model cards, codecs, chat templates, checkpoint folders."""

from lmrl.text.card import ModelCard, load_card, response_texts

__all__ = ["ModelCard", "load_card", "response_texts"]
