"""Drawing tokens: the specification, how responses end, and decode engines."""

from typing import TYPE_CHECKING

from lmrl.engines.protocol import (
    Capabilities,
    Engine,
    FinishReason,
    Request,
    RequestSource,
    Response,
    SamplingSpec,
    WeightSource,
    finish_codes,
    finish_flags,
)
from lmrl.lazy import lazy_names
from lmrl.seeds import derive_seed

if TYPE_CHECKING:
    from lmrl.engines.batch import RequestQueue, generate_all, sample_batch
    from lmrl.engines.joint import JointModel
    from lmrl.engines.local.cache import JointCache
    from lmrl.engines.opening import open_engine
    from lmrl.engines.weights import LiveWeights

__all__ = [
    "Capabilities",
    "Engine",
    "FinishReason",
    "JointCache",
    "JointModel",
    "LiveWeights",
    "Request",
    "RequestQueue",
    "RequestSource",
    "Response",
    "SamplingSpec",
    "WeightSource",
    "derive_seed",
    "finish_codes",
    "finish_flags",
    "generate_all",
    "open_engine",
    "sample_batch",
]

# These need torch, which the environment's import must not load.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lmrl.engines.batch": ("RequestQueue", "generate_all", "sample_batch"),
        "lmrl.engines.joint": ("JointModel",),
        "lmrl.engines.local.cache": ("JointCache",),
        "lmrl.engines.opening": ("open_engine",),
        "lmrl.engines.weights": ("LiveWeights",),
    },
)
