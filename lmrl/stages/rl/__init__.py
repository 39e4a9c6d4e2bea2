"""Reinforcement learning of a policy: ``rl(RLConfig(...))``, or ``RLTrainer``."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.stages.rl.config import RLConfig
    from lmrl.stages.rl.stage import RLResult, rl
    from lmrl.stages.rl.trainer import RLTrainer

__all__ = ["RLConfig", "RLResult", "RLTrainer", "rl"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lmrl.stages.rl.stage": ("RLResult", "rl"),
        "lmrl.stages.rl.config": ("RLConfig",),
        "lmrl.stages.rl.trainer": ("RLTrainer",),
    },
)
