"""The configuration of `lmrl sft`: one dataclass per section of the recipe; field docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lmrl.config import PluginChoice, choice, only_if
from lmrl.data.layouts.rows import RowSettings
from lmrl.engines.settings import SamplingSettings
from lmrl.models.adapters import AdapterSettings
from lmrl.text.chat_setup import TemplateSettings
from lmrl.training.settings import CheckpointSettings, RunSettings, SupervisedSettings, require_at_least


@dataclass
class SFTDataSettings(RowSettings):
    """The examples to imitate, and what is done with long ones."""

    held_out: float = 0.1
    """Examples kept back for evaluation: a number of them, or a share below 1; 0 keeps none."""
    held_out_path: str = ""
    """A file or data set of its own for evaluation, of the same kinds; data.held_out is then not used."""
    turns: Literal["all", "last"] = "all"
    """Answers of a conversation that are trained; last suits templates that rewrite earlier turns."""
    max_length: int = 0
    """Tokens per example at the most; 0: as many as the model's context holds."""
    too_long: Literal["skip", "truncate"] = "skip"
    """Treatment of longer examples: left out, or cut off at their end. Both are counted and reported."""

    def __post_init__(self) -> None:
        require_at_least("data", self, {"held_out": 0, "max_length": 0})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        found = super().unread() | only_if(not self.held_out_path, "held_out_path left out", "held_out")
        return found | only_if(self.chat != "off", "chat=auto or on", "turns")


@dataclass
class SFTTrainSettings(SupervisedSettings):
    """Size of a step and how parameters move."""

    steps: int = 200
    """Gradient steps."""
    epochs: float = 0.0
    """Passes over the examples; above 0 it takes the place of steps."""
    examples_per_step: int = 32
    """Examples per gradient step, over all ranks."""
    microbatch_tokens: int = 0
    """Positions per forward and backward pass, padding included: a memory limit that changes no gradient.
    0: 1024 on a CPU, 16384 elsewhere."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Put several short examples into one row, kept apart by the attention mask; changes the time and nothing else.
    auto: on where the model can, except on a CPU, where rows sorted by length are as fast."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW; a low-rank adapter takes about ten times that of all weights."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW, on matrices only."""
    evaluate_every: int = 50
    """Steps between evaluations; the first and the last are always made. 0: only those two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("train", self, {"epochs": 0, "examples_per_step": 1, "microbatch_tokens": 0})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return super().unread() | only_if(not self.epochs, "epochs=0", "steps")


@dataclass
class SFTSampleSettings:
    """Answers to held-out prompts along the way."""

    prompts: int = 3
    """Held-out prompts that are answered at each evaluation; 0 is none."""

    def __post_init__(self) -> None:
        require_at_least("samples", self, {"prompts": 0})


@dataclass
class SFTConfig:
    """Everything that `lmrl sft` can be told."""

    model: str = ""
    """Folder, run folder or hub id of a causal language model; empty is the embedded story model."""
    trust_remote_code: bool = False
    """Run Python code that a model or tokenizer comes with; read that code first."""
    run: RunSettings = field(default_factory=RunSettings)
    data: SFTDataSettings = field(default_factory=SFTDataSettings)
    template: TemplateSettings = field(default_factory=TemplateSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    train: SFTTrainSettings = field(default_factory=SFTTrainSettings)
    samples: SFTSampleSettings = field(default_factory=SFTSampleSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers besides metrics.jsonl, by name."""
    tracker: PluginChoice = choice("tracker", "", instead="trackers")

    def unread_sections(self, plugins: object) -> dict[str, str]:
        """Return the settings that nothing reads because of another section, each with the one that it needs."""
        held_out = self.data.held_out > 0 or bool(self.data.held_out_path)
        names = ("samples", "train.evaluate_every", "sampling")
        found = only_if(held_out, "data.held_out above 0 or data.held_out_path", *names)
        return found | only_if(bool(self.samples.prompts), "samples.prompts above 0", "sampling")
