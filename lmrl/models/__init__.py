"""Models: loading them, and the roles that they play in training. Torch is imported when a name is first used."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.models.loading import LanguageModel, freeze_copy, load
    from lmrl.models.policy import PolicyModel

__all__ = ["LanguageModel", "PolicyModel", "freeze_copy", "load"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"lmrl.models.loading": ("LanguageModel", "freeze_copy", "load"), "lmrl.models.policy": ("PolicyModel",)},
)
