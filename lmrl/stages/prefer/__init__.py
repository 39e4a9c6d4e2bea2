"""Build preference data: ``prefer(PreferConfig(...))``."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.stages.prefer.config import PreferConfig
    from lmrl.stages.prefer.stage import PreferResult, prefer

__all__ = ["PreferConfig", "PreferResult", "prefer"]

__getattr__, __dir__ = lazy_names(
    __name__, {"lmrl.stages.prefer.stage": ("PreferResult", "prefer"), "lmrl.stages.prefer.config": ("PreferConfig",)}
)
