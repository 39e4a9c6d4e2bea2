"""Settings of optimizers in the suites, where a default is made for another size. Everybody's budget is the same.

``"beta"`` and ``"1/beta"`` stand for the suite's coefficient: methods without the KL in their reward have one of their
own. Names that are not installed are harmless.
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
    "ilql": {"beta": "1/beta"},
}

EXACT_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # Dividing by a group's deviation is a bias; these are the same plugins without it.
    "grpo_centred": ("grpo", {"normalisation": "none"}),
    "gspo_centred": ("gspo", {"normalise_std": False}),
    "cispo_centred": ("cispo", {"normalise_std": False}),
}
"""Further rows of the table: an optimizer under another name, with other settings."""
