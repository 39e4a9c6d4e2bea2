"""Fine-tune a model on examples: ``sft(SFTConfig(...))``."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.stages.sft.config import SFTConfig
    from lmrl.stages.sft.stage import SFTResult, sft

__all__ = ["SFTConfig", "SFTResult", "sft"]

__getattr__, __dir__ = lazy_names(
    __name__, {"lmrl.stages.sft.stage": ("SFTResult", "sft"), "lmrl.stages.sft.config": ("SFTConfig",)}
)
