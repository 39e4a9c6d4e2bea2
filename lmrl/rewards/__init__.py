"""Rewards: any callable ``(prompts, responses, **columns) -> scores``, found by name, checked, and summed with weights.

Importing this package needs neither torch nor transformers.
"""

from lmrl.rewards.binding import sampled_columns
from lmrl.rewards.builtin import builtin_specs
from lmrl.rewards.function import RewardFunction
from lmrl.rewards.resolve import Reward, resolve
from lmrl.rewards.result import RewardResult
from lmrl.rewards.rows import per_row

__all__ = ["Reward", "RewardFunction", "RewardResult", "builtin_specs", "per_row", "resolve", "sampled_columns"]
