"""Train a reward model on rankings: ``reward(RewardConfig(...))``."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.stages.reward.config import RewardConfig
    from lmrl.stages.reward.stage import RewardTrainingResult, reward

__all__ = ["RewardConfig", "RewardTrainingResult", "reward"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"lmrl.stages.reward.stage": ("RewardTrainingResult", "reward"), "lmrl.stages.reward.config": ("RewardConfig",)},
)
