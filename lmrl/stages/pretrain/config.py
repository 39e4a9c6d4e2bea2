"""The configuration of pretraining: one dataclass per section of the recipe; field docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmrl.config import PluginChoice, all_but, choice, only_if
from lmrl.corpus.settings import CleanSettings, CorpusSettings, TokenizerSettings
from lmrl.errors import SettingsError
from lmrl.training.settings import CheckpointSettings, RunSettings, SupervisedSettings, require_at_least


@dataclass
class PretrainModelSettings:
    """The model: its family and size, or a checkpoint to continue from."""

    architecture: str = "llama"
    """A model type of transformers that AutoModelForCausalLM knows: llama, qwen3, gpt2, mamba, ..."""
    context_length: int = 256
    """Tokens of a block, and positions that a new model is made for."""
    hidden_size: int = 256
    """Width of a new model."""
    layers: int = 4
    """Layers of a new model."""
    heads: int = 4
    """Attention heads of a new model, where its family has them."""
    tie_embeddings: bool = True
    """Use the input embeddings as the output layer too."""
    config: dict[str, Any] = field(default_factory=dict)
    """Further settings of the family's own configuration, by its names: [model.config] num_key_value_heads = 2."""
    continue_from: str = ""
    """Folder, run or hub id of a checkpoint to continue from, with its tokenizer; what makes a new model is unused."""
    trust_remote_code: bool = False
    """Run Python code that this checkpoint comes with; read that code first."""

    def __post_init__(self) -> None:
        require_at_least("model", self, {"context_length": 2, "hidden_size": 1, "layers": 1, "heads": 1})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        new = all_but(self, "continue_from", "context_length")
        return only_if(not self.continue_from, "continue_from left out", *new)


@dataclass
class PretrainTrainSettings(SupervisedSettings):
    """Optimization, and the tokens of each step."""

    rows: int = 32
    """Blocks per step, over all ranks."""
    microbatch_rows: int = 0
    """Blocks per forward and backward pass: a memory limit that changes no gradient. 0: by the size of the logits."""
    cross_documents: bool = True
    """Let attention reach across the documents of a block, as is customary; false masks it, and positions begin anew
    with every document."""
    evaluate_tokens: int = 100_000
    """Tokens of whole held-out documents that an evaluation reads at the most; 0 is all."""
    evaluate_overlap: float = 0.0
    """Share of a window that was read before: a document longer than the context is evaluated in windows, and with
    0.5 every token but the first has at least half a context before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("train", self, {"rows": 1, "microbatch_rows": 0, "evaluate_tokens": 0})
        if not 0 <= self.evaluate_overlap < 1:
            raise SettingsError(
                f"train.evaluate_overlap is {self.evaluate_overlap}; expected a share from 0 to below 1"
            )


@dataclass
class SampleSettings:
    """Texts that are sampled at every evaluation, to be looked at."""

    prompts: list[str] = field(default_factory=lambda: ["", "", ""])
    """Beginnings of texts; the empty one is the beginning of a document."""
    max_new_tokens: int = 100
    """Tokens per sample at the most."""
    temperature: float = 1.0
    """Divides the logits."""

    def __post_init__(self) -> None:
        require_at_least("samples", self, {"max_new_tokens": 1})
        if not self.temperature > 0:
            raise SettingsError(f"samples.temperature is {self.temperature}; expected a number above 0")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(bool(self.prompts), "prompts set", *all_but(self, "prompts"))


@dataclass
class PretrainConfig:
    """Everything that `lmrl pretrain` can be told."""

    model: PretrainModelSettings = field(default_factory=PretrainModelSettings)
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    clean: CleanSettings = field(default_factory=CleanSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    train: PretrainTrainSettings = field(default_factory=PretrainTrainSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers besides metrics.jsonl, by name."""
    tracker: PluginChoice = choice("tracker", "", instead="trackers")

    def unread_sections(self, plugins: object) -> dict[str, str]:
        """Return the settings that nothing reads because of another section, each with the one that it needs."""
        continued = bool(self.model.continue_from)
        brought = continued and not self.tokenizer.path
        made = ("kind", "vocabulary_size", "min_frequency", "max_characters")
        found = only_if(not brought, "model.continue_from left out", *(f"tokenizer.{name}" for name in made))
        found |= only_if(continued or bool(self.tokenizer.path), "tokenizer.path set", "tokenizer.eos_token")
        held_out = self.corpus.held_out > 0 or bool(self.corpus.held_out_paths)
        switch = "corpus.held_out above 0 or corpus.held_out_paths"
        found |= only_if(held_out, switch, "train.evaluate_tokens", "train.evaluate_overlap")
        return found | only_if(held_out or bool(self.samples.prompts), switch, "train.evaluate_every")
