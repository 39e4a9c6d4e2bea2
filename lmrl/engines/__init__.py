"""Drawing tokens: the specification, how responses end, and decode engines."""

from typing import TYPE_CHECKING

from lmrl.engines.finish import FinishReason, finish_codes, finish_flags
from lmrl.engines.spec import SamplingSpec
from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.engines.engine import Engine

__all__ = ["Engine", "FinishReason", "SamplingSpec", "finish_codes", "finish_flags"]

# The protocol needs torch, which the environment's import must not load.
__getattr__, __dir__ = lazy_names(__name__, {"lmrl.engines.engine": ("Engine",)})
