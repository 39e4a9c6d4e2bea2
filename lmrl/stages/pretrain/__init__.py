"""Pretrain a model on text: ``pretrain(PretrainConfig(...))``."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.stages.pretrain.config import PretrainConfig
    from lmrl.stages.pretrain.stage import PretrainResult, pretrain

__all__ = ["PretrainConfig", "PretrainResult", "pretrain"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"lmrl.stages.pretrain.stage": ("PretrainResult", "pretrain"), "lmrl.stages.pretrain.config": ("PretrainConfig",)},
)
