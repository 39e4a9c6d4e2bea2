"""The configuration of the reward stage: one dataclass per section of the recipe; field docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lmrl.config import PluginChoice, choice, only_if
from lmrl.data import RowSettings
from lmrl.engines.settings import SamplingSettings
from lmrl.errors import SettingsError
from lmrl.training.settings import CheckpointSettings, RunSettings, SupervisedSettings, require_at_least


@dataclass
class RankingDataSettings(RowSettings):
    """Preferences to learn from, and how many of them are held out."""

    held_out: float = 0.1
    """Share of the prompts, or from 1 on their number, that training never sees; 0 reports nothing at the end."""
    too_long: Literal["skip", "truncate"] = "skip"
    """Answers that do not fit the model's context with their prompt. skip: they are left out; truncate: the row loses
    its beginning, first the prompt's and then the answer's, as the reward `learned` does it. Both are counted."""
    max_tokens: int = 0
    """Rows longer than this count as too long for the context, which saves time and memory; 0: the model's context."""
    template: Literal["auto", "plain"] = "auto"
    """auto: conversations are rendered by the model's own chat template. plain: a model without one is given one that
    needs no new tokens ("User: ...", "Assistant: ..."), which is saved with it."""

    def __post_init__(self) -> None:
        if not self.held_out >= 0:
            raise SettingsError(f"data.held_out is {self.held_out}; expected a number >= 0")


@dataclass
class ObjectiveSettings:
    """Loss that is minimised."""

    loss: Literal["plackett_luce", "bradley_terry"] = "plackett_luce"
    """plackett_luce: the likelihood of the whole ranking (of two answers: Bradley-Terry); bradley_terry: the mean over
    all pairs of a ranking."""
    margin: float = 0.0
    """bradley_terry: by how much the better answer's score has to be higher."""
    score_margin: float = 0.0
    """bradley_terry: the same, times the difference of the scores that the data give to the two answers."""
    centring: float = 0.0
    """Coefficient of the mean of (r_i + r_j)^2 over a prompt's answers, which keeps scores around 0; 0.01 is usual."""

    def __post_init__(self) -> None:
        require_at_least("objective", self, {"margin": 0, "score_margin": 0, "centring": 0})
        for name in ("margin", "score_margin"):
            if getattr(self, name) and self.loss != "bradley_terry":
                raise SettingsError(
                    f"objective.{name} is {getattr(self, name)}, but objective.loss is {self.loss!r}; a margin belongs "
                    'to pairs: set objective.loss = "bradley_terry"'
                )


@dataclass
class RewardTrainSettings(SupervisedSettings):
    """Size of a batch and how the parameters move."""

    steps: int = 300
    """Gradient steps."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises from zero."""
    evaluate_every: int = 50
    """Steps between evaluations; the first and the last are always made. 0: only those two."""
    rankings_per_step: int = 32
    """Rankings (prompts with their answers) per step, over all ranks."""
    microbatch_tokens: int = 0
    """Positions per forward and backward pass: a memory limit that changes no gradient; a ranking is never divided.
    0: 8192 on a CPU, 32768 elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("train", self, {"rankings_per_step": 1, "microbatch_tokens": 0})


@dataclass
class NormaliseSettings:
    """Scores of reference texts get mean 0 and standard deviation 1; the two numbers are stored with the model."""

    on: Literal["data", "samples", "off"] = "data"
    """data: answers of the training data; samples: answers that a reference model gives to its prompts; off: scores
    stay as they are."""
    count: int = 512
    """Reference texts at most."""
    reference: str = ""
    """on = samples: folder or hub id of the reference model, the one that RL will start from; empty is model."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        require_at_least("normalise", self, {"count": 2})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        found = only_if(self.on == "samples", "on=samples", "reference", "sampling")
        return found | only_if(self.on != "off", "on=data or samples", "count")


@dataclass
class EnsembleSettings:
    """Several reward models that differ by their seed: the new head and the order of the data."""

    members: int = 1
    """Reward models to train, one after the other, into member-1, member-2, ... of the run's folder."""

    def __post_init__(self) -> None:
        require_at_least("ensemble", self, {"members": 1})


@dataclass
class RewardConfig:
    """Everything that `lmrl reward` can be told."""

    model: str = ""
    """Folder or hub id of a causal language model, or of a reward model to train further; empty is the embedded story
    model."""
    trust_remote_code: bool = False
    """Run Python code that a model or tokenizer comes with; read that code first."""
    run: RunSettings = field(default_factory=RunSettings)
    data: RankingDataSettings = field(default_factory=RankingDataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    train: RewardTrainSettings = field(default_factory=RewardTrainSettings)
    normalise: NormaliseSettings = field(default_factory=NormaliseSettings)
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers besides metrics.jsonl, by name."""
    tracker: PluginChoice = choice("tracker", "", instead="trackers")

    def unread_sections(self, plugins: object) -> dict[str, str]:
        """Return the settings that nothing reads because of another section, each with the one that it needs."""
        return only_if(self.data.held_out > 0, "data.held_out above 0", "train.evaluate_every")
