"""Models: what is known of them (``card``), loading them, and the roles they play."""

from lmrl.models.card import ModelCard, load_card, response_texts

__all__ = ["ModelCard", "load_card", "response_texts"]
