"""The configuration of the RL stage: one dataclass per section of the recipe; field docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lmrl.config import PluginChoice, choice
from lmrl.data.rows import RowSettings
from lmrl.kl import KLSettings
from lmrl.sampling.settings import SamplingSettings
from lmrl.stages.settings import CheckpointSettings, RunSettings, require_at_least


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
    """Give the value function a trunk of its own, a copy of the starting policy's, instead of the policy's."""
    resamples: int = 3
    """For optimizers that sample uninformative groups anew: how often at the most in one update."""
    warmup_updates: int = 0
    """Updates over which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
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
            "warmup_updates",
            "max_gradient_norm",
            "weight_decay",
        )
        require_at_least("train", self, dict.fromkeys(("learning_rate", "value_learning_rate", *optional), 0))


@dataclass
class ScoringSettings:
    """When and where rewards are called."""

    concurrency: Literal["auto", "none", "thread", "process"] = "auto"
    """none: once per batch, after the sampling; thread, process: in a pool, with each row as soon as it is complete,
    while the others are still sampled. Only for rewards that score each row by itself. auto: what the reward says of
    itself, which is none unless its author has thought about it."""
    workers: int = 8
    """Threads, or processes, of that pool."""

    def __post_init__(self) -> None:
        require_at_least("scoring", self, {"workers": 1})


@dataclass
class EvaluationSettings:
    """Evaluation on prompts that training never sees."""

    every: int = 10
    """Updates between evaluations; the first and the last are always made. 0: only those two."""
    prompts: int = 64
    """Prompts held out of the data; 0 switches evaluation off."""
    samples_per_prompt: int = 1
    """Responses per held-out prompt."""
    show: int = 3
    """Sample texts that are stored and shown."""

    def __post_init__(self) -> None:
        require_at_least("evaluation", self, {"every": 0, "prompts": 0, "samples_per_prompt": 1, "show": 0})


@dataclass
class LearningData(RowSettings):
    """What optimizers that do not sample learn from; see docs/datasets.md for the shapes."""

    pairs: Literal["all", "best_worst"] = "all"
    """Of each ranking: every pair of answers of different rank, or the best and the worst one."""


@dataclass
class RLConfig:
    """Everything that `lmrl rl` can be told."""

    model: str = ""
    """Folder or hub id of a causal language model; empty is the embedded story model."""
    reference: str = ""
    """Folder or hub id of the frozen reference; empty is the starting policy itself."""
    run: RunSettings = field(default_factory=RunSettings)
    prompts: PluginChoice = choice("dataset", "stories")
    engine: PluginChoice = choice("engine", "transformers")
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    reward: PluginChoice = choice("reward", "happy_end")
    reward_weights: dict[str, float] = field(default_factory=dict)
    """Several rewards at once: name = weight; used instead of reward.name when not empty."""
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    kl: KLSettings = field(default_factory=KLSettings)
    optimizer: PluginChoice = choice("optimizer", "ppo")
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    data: LearningData = field(default_factory=LearningData)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers besides metrics.jsonl, by name."""
