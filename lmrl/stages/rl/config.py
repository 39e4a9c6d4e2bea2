"""The configuration of the RL stage: one dataclass per section of the recipe; field docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lmrl.algorithms.kl import KLSettings
from lmrl.config import PluginChoice, all_but, choice, only_if
from lmrl.data.layouts.rows import RowSettings
from lmrl.engines.settings import SamplingSettings
from lmrl.errors import SettingsError
from lmrl.models.adapters import AdapterSettings
from lmrl.rewards.scorable import OnUnreadable
from lmrl.training.settings import CheckpointSettings, RunSettings, require_at_least
from lmrl.training.update_settings import TrainSettings

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager


@dataclass
class ScoringSettings:
    """Time and place of calls of rewards."""

    concurrency: Literal["auto", "none", "thread", "process"] = "auto"
    """none: once per batch, after the sampling; thread, process: in a pool, with each row as soon as it is complete,
    while the others are still sampled. Only for rewards that score each row by itself. auto: what the reward says of
    itself, which is none unless its author has thought about it."""
    workers: int = 8
    """Threads, or processes, of that pool."""
    on_unreadable: OnUnreadable = "skip"
    """Rows of the data whose answer a reward cannot read: skip counts and names them before the run, error refuses
    them."""

    def __post_init__(self) -> None:
        require_at_least("scoring", self, {"workers": 1})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.concurrency != "none", "concurrency=thread or process", "workers")


@dataclass
class ReplaySettings:
    """Groups of earlier updates that are learned from again."""

    share: float = 0.0
    """Share of an update's groups that are replayed, beside train.prompts_per_update new ones: 0.5 replays as many as
    are new. 0 switches it off."""
    window: int = 4
    """Updates whose groups are kept."""

    def __post_init__(self) -> None:
        require_at_least("replay", self, {"window": 1})
        if not 0 <= self.share < 1:
            raise SettingsError(f"replay.share is {self.share}; expected a number from 0 to below 1")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.share > 0, "share above 0", "window")


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

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.prompts > 0, "prompts above 0", *all_but(self, "prompts"))


@dataclass
class LearningData(RowSettings):
    """Data for optimizers that do not sample; see docs/datasets.md for the shapes."""

    pairs: Literal["all", "best_worst"] = "all"
    """Of each ranking: every pair of answers of different rank, or the best and the worst one."""


@dataclass
class AuxiliarySettings:
    """A second stream of data, whose weighted loss is added to the gradient of every optimizer step."""

    weight: float = 0.0
    """What its loss is multiplied with; 0 switches it off."""
    optimizer: PluginChoice = choice("optimizer", "imitation")
    """Method that learns from the data, by name: imitation makes PPO to PPO-ptx."""
    data: LearningData = field(default_factory=LearningData)
    """Data of the method."""
    rows: int = 16
    """Rows of the data per optimizer step, over all ranks."""

    def __post_init__(self) -> None:
        require_at_least("auxiliary", self, {"weight": 0, "rows": 1})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.weight > 0, "weight above 0", *all_but(self, "weight"))


@dataclass
class RLConfig:
    """Configuration of `lmrl rl`."""

    model: str = ""
    """Folder or hub id of a causal language model; empty is the embedded story model."""
    reference: str = ""
    """Folder or hub id of the frozen reference; empty is the starting policy itself."""
    trust_remote_code: bool = False
    """Run Python code that a model or tokenizer comes with; read that code first."""
    run: RunSettings = field(default_factory=RunSettings)
    """Run folder, seed and device."""
    prompts: PluginChoice = choice("dataset", "stories")
    """Data set of prompts, by name."""
    prompt_sampler: PluginChoice = choice("prompt_sampler", "shuffled")
    """Choice of the prompts of each update, by name."""
    engine: PluginChoice = choice("engine", "transformers")
    """Inference engine, by name."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Distribution of the responses, and their limits."""
    reward: PluginChoice = choice("reward", "happy_end", instead="reward_weights")
    """Reward, by name."""
    reward_weights: dict[str, float] = field(default_factory=dict)
    """Several rewards at once: name = weight; used instead of reward.name when not empty."""
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    """Time and place of calls of rewards."""
    kl: KLSettings = field(default_factory=KLSettings)
    """KL penalty."""
    optimizer: PluginChoice = choice("optimizer", "ppo")
    """Policy optimizer, by name."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Batch size and optimization settings."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """Earlier groups that are learned from again."""
    auxiliary: AuxiliarySettings = field(default_factory=AuxiliarySettings)
    """A second stream of data in the loss."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Low-rank adapter, if one is trained."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """Evaluation on held-out prompts."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """Frequency and form of checkpoints."""
    data: LearningData = field(default_factory=LearningData)
    """Data for optimizers that do not sample."""
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers besides metrics.jsonl, by name."""
    tracker: PluginChoice = choice("tracker", "", instead="trackers")
    """Settings of the trackers, by name."""

    def unread_sections(self, plugins: PluginManager) -> dict[str, str]:
        """Return the settings that nothing reads because of another section, each with the one that it needs."""
        optimizer, settings = self.optimizer.resolve(plugins)
        needs = optimizer.needs
        samples, evaluates = needs.experience == "rollouts", self.evaluation.prompts > 0
        reading = [f"data.{name}" for name in all_but(self.data, "path")]  # a path is refused with a message of its own
        found = only_if(not samples, "the optimizer.name of one that learns from data", *reading)
        found |= only_if(samples, "the optimizer.name of one that samples", "prompt_sampler", "replay")
        if self.auxiliary.weight:  # one batch of its data for each step of the other optimizer
            method = self.auxiliary.optimizer.name
            steps = [f"auxiliary.optimizer.{method}.{name}" for name in ("epochs", "minibatches")]
            found |= only_if(False, f"optimizer.name={method}, as a method by itself", *steps)
        kl = [f"kl.{name}" for name in all_but(self.kl, "log_reference")]
        found |= only_if(samples, "the optimizer.name of one that samples", *kl, "train.group_size", "train.resamples")
        found |= only_if(
            needs.experience == "preferences", "the optimizer.name of one that learns from pairs", "data.pairs"
        )
        built = optimizer.build(settings)
        dynamic = built.defines("informative") and getattr(settings, "dynamic_sampling", True)
        found |= only_if(dynamic, "an optimizer with dynamic sampling", "train.resamples")
        if samples:
            pairs = built.defines("pairs")
            read = not pairs or optimizer.reads_rewards
            found |= only_if(read, "the optimizer.name of one that reads shaped rewards", *kl)
            penalized = pairs or optimizer.reads_rewards or self.kl.placement == "loss"
            penalty = [f"kl.{name}" for name in all_but(self.kl, "placement", "log_reference")]
            found |= only_if(penalized, "kl.placement=loss, because it compares scores alone", *penalty)
        values = "the optimizer.name of one with a value function"
        found |= only_if(bool(needs.values) or built.defines("heads"), values, "train.value_learning_rate")
        found |= only_if(needs.values, values, "train.separate_critic", "train.critic_warmup_updates")
        found |= only_if(self.adapter.method == "none", "adapter.method=none", "checkpoint.dtype")
        used = ("reward", "reward_weights", "engine", "scoring")
        found |= only_if(samples or evaluates, "evaluation.prompts above 0", *used)
        return found | only_if(not self.reward_weights, "reward_weights left out", "reward.name")
