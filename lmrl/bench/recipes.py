"""Settings of optimizers in the suites, where a default is made for another size. Everybody's budget is the same.

``"beta"`` stands for the suite's coefficient: methods without a KL of their own in the reward have one in their loss.
Names that are not installed are harmless.
"""

from __future__ import annotations

from typing import Any

EXACT: dict[str, dict[str, Any]] = {
    # Rollouts are cheap and the policy small: few steps on each, so that the policies that sample and learn stay near.
    "ppo": {"epochs": 2, "minibatches": 2, "gae_lambda": 1.0, "value_clip_range": 0.0},
    "nlpo": {"epochs": 2, "minibatches": 2, "gae_lambda": 1.0, "value_clip_range": 0.0},
    "dpo": {"beta": "beta"},
    "kto": {"beta": "beta"},
    "online_dpo": {"beta": "beta"},
}
