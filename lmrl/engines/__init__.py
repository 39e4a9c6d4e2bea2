"""Drawing tokens: the specification, how responses end, and decode engines."""

from typing import TYPE_CHECKING, Any

from lmrl.engines.finish import FinishReason, finish_codes, finish_flags
from lmrl.engines.spec import SamplingSpec

if TYPE_CHECKING:
    from lmrl.engines.engine import Engine

__all__ = ["Engine", "FinishReason", "SamplingSpec", "finish_codes", "finish_flags"]


def __getattr__(name: str) -> Any:
    if name == "Engine":  # needs torch, which the environment's import must not load
        from lmrl.engines.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
