"""Settings of the policy update: the table `train` of a recipe of `lmrl rl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmrl.config import only_if
from lmrl.training.settings import require_at_least


@dataclass
class TrainSettings:
    """Size of a batch and how parameters move."""

    updates: int = 100
    """Number of rollout batches to sample and learn from."""
    prompts_per_update: int = 64
    """Prompts per rollout batch, over all ranks."""
    group_size: int = 1
    """Responses sampled per prompt."""
    microbatch_tokens: int = 0
    """Tokens per forward and backward pass, a prompt that rows share counted once (with models whose rows cannot be
    packed: positions, padding included). A memory limit that changes no gradient. 0: as microbatch_memory says."""
    microbatch_memory: float = 0.0
    """GiB that may be kept for a backward pass; tokens are measured by it at the start. 0: on a GPU 0.4 of what is free
    beside gradients and AdamW's moments; on a CPU 2048 tokens, which measured fastest."""
    learning_rate: float = 1e-4
    """Peak learning rate of the policy."""
    value_learning_rate: float = 1e-3
    """Peak learning rate of the value head, which starts at zero."""
    separate_critic: bool = False
    """Give the value function a trunk of its own, a copy of the starting policy's, instead of the policy's; with an
    adapter, an adapter of its own on the same frozen model."""
    importance_cap: float = 2.0
    """The largest weight that corrects a token for samples of another distribution than the policy's. Used in lower
    precision, with engines whose log-probabilities are not exact, and for replayed samples."""
    importance_level: Literal["token", "sequence"] = "token"
    """Unit of an importance weight. token: each token has its own ratio; sequence: the ratio of the whole response,
    which is unbiased below the cap and varies more."""
    resamples: int = 3
    """Limit of the rounds of sampling in one update in which optimizers with dynamic sampling replace uninformative
    groups."""
    critic_warmup_updates: int = 0
    """First updates in which the value function learns alone and the policy stands still. The policy's warm-up and
    schedule begin after them."""
    warmup_updates: int = 0
    """Updates over which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 switches it off."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    adam_beta1: float = 0.9
    """AdamW's decay of the gradient's mean."""
    adam_beta2: float = 0.95
    """AdamW's decay of the gradient's second moment."""

    def __post_init__(self) -> None:
        require_at_least("train", self, {"updates": 1, "prompts_per_update": 1, "group_size": 1})
        optional = (
            "microbatch_tokens",
            "microbatch_memory",
            "resamples",
            "importance_cap",
            "critic_warmup_updates",
            "warmup_updates",
            "max_gradient_norm",
            "weight_decay",
        )
        require_at_least("train", self, dict.fromkeys(("learning_rate", "value_learning_rate", *optional), 0))

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(not self.microbatch_tokens, "microbatch_tokens=0", "microbatch_memory")
