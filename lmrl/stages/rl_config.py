"""The configuration of the RL stage: one dataclass per section of the recipe; field docstrings are the help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmrl.config import PluginChoice, choice
from lmrl.errors import SettingsError
from lmrl.kl import KLSettings


def require_at_least(section: str, settings: Any, lowest: Mapping[str, int]) -> None:
    """Raise ``SettingsError`` for the first of the named settings that lies below its lowest value."""
    for name, bound in lowest.items():
        if not getattr(settings, name) >= bound:
            raise SettingsError(f"{section}.{name} is {getattr(settings, name)}; expected a number of at least {bound}")


@dataclass
class RunSettings:
    """Where a run is kept and what makes it repeatable."""

    folder: str = ""
    """Folder of the run; empty is the next free runs/<optimizer>-<n>."""
    seed: int = 0
    """Everything random derives from it: sampling, order of prompts, minibatches, held-out split."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one (CUDA_VISIBLE_DEVICES says which), cpu never does."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Autocast precision; auto is bf16 on a GPU that has it and full precision on a CPU, where bf16 is slower."""


@dataclass
class SamplingSettings:
    """How responses are drawn."""

    temperature: float = 1.0
    """Divides the logits; the scorer and the reference use the same."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 is off. Training refuses it, because the scorer's support would differ."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this probability; 1 is off. Training refuses it."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one; 0 is off. Training refuses it."""
    max_new_tokens: int = 64
    """Tokens per response at the most."""
    stop_strings: list[str] = field(default_factory=list)
    """A response ends where its text first holds one of these; they are not part of it."""
    forbidden_ids: list[int] = field(default_factory=list)
    """Token ids that are never drawn."""
    on_length: Literal["terminate", "truncate"] = "terminate"
    """terminate: a response cut off at its limit is scored; truncate: its score is withheld and values bootstrap."""


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
    """Positions per forward and backward pass, padding included: a memory limit that changes no gradient.
    0: 2048 on a CPU, 16384 elsewhere."""
    learning_rate: float = 1e-4
    """Peak learning rate of the policy."""
    value_learning_rate: float = 1e-3
    """Peak learning rate of the value head, which starts at zero."""
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
        optional = ("microbatch_tokens", "warmup_updates", "max_gradient_norm", "weight_decay")
        require_at_least("train", self, dict.fromkeys(("learning_rate", "value_learning_rate", *optional), 0))


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
class CheckpointSettings:
    """When the run is saved."""

    every: int = 50
    """Updates between checkpoints; the last one is always made. 0: only that one."""
    keep: int = 2
    """Checkpoints kept; older ones are removed."""

    def __post_init__(self) -> None:
        require_at_least("checkpoint", self, {"every": 0, "keep": 1})


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
    kl: KLSettings = field(default_factory=KLSettings)
    optimizer: PluginChoice = choice("optimizer", "ppo")
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers besides metrics.jsonl, by name."""
