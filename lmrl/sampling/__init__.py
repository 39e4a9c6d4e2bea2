"""Drawing tokens: the specification, how responses end, and decode engines."""

from lmrl.sampling.finish import FinishReason, finish_codes, finish_flags
from lmrl.sampling.spec import SamplingSpec

__all__ = ["FinishReason", "SamplingSpec", "finish_codes", "finish_flags"]
