"""Models: what is known of them (``card``), loading them, and the roles they play.

``load`` and the roles need torch and are imported when first used.
"""

from typing import TYPE_CHECKING, Any

from lmrl.text.card import ModelCard, load_card, response_texts

if TYPE_CHECKING:
    from lmrl.models.loading import LanguageModel, freeze_copy, load
    from lmrl.models.policy import PolicyModel

__all__ = ["LanguageModel", "ModelCard", "PolicyModel", "freeze_copy", "load", "load_card", "response_texts"]

_LAZY = {"LanguageModel": "loading", "load": "loading", "freeze_copy": "loading", "PolicyModel": "policy"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
