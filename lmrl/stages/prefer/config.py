"""The configuration of the preference stage: one dataclass per section of the recipe; field docstrings are the help."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from lmrl.annotators import AnnotatorSettings
from lmrl.config import PluginChoice, all_but, choice, only_if
from lmrl.data import RowSettings
from lmrl.engines.settings import SamplingSettings
from lmrl.errors import SettingsError
from lmrl.rewards.scorable import OnUnreadable
from lmrl.training.settings import RunSettings, require_at_least

GOLD = "gold"
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class SamplesSettings:
    """Responses that are compared."""

    per_prompt: int = 4
    """Responses sampled for each prompt; those that are alike are compared once."""
    prompts: int = 0
    """Use the first so many prompts at the most; 0 uses all."""

    def __post_init__(self) -> None:
        require_at_least("samples", self, {"per_prompt": 2, "prompts": 0})


@dataclass
class GoldSettings:
    """Source of the true order, where it is known: annotators are measured by it, and no file is made of it."""

    reward: str = ""
    """A registered reward, "module:function", or the folder of a reward model; empty: the column below, or the ranks
    that came with completions_from."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The reward's own settings."""
    tolerance: float = 0.0
    """As an annotator's: scores this far below the best of their group share its rank."""

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(bool(self.reward), "reward set", "settings", "tolerance")


@dataclass
class OutputSettings:
    """Output of rankings."""

    format: Literal["jsonl", "parquet"] = "jsonl"
    """Kind of the files rankings and pairs."""
    pairs: Literal["all", "best_worst", "adjacent"] = "all"
    """Pairs of a ranking that are written: all, the best against the worst, or those of neighbouring ranks."""
    annotators: list[str] = field(default_factory=list)
    """Annotators whose rankings are written, each with rows of its own; empty: the first one alone. The others serve
    the report on agreement."""


@dataclass
class PreferConfig:
    """Everything that `lmrl prefer` can be told."""

    model: str = ""
    """Folder or hub id of the model whose responses are compared; empty is the embedded story model."""
    trust_remote_code: bool = False
    """Run Python code that a model or tokenizer comes with; read that code first."""
    run: RunSettings = field(default_factory=RunSettings)
    prompts: PluginChoice = choice("dataset", "stories")
    chat: Literal["auto", "on", "off"] = "auto"
    """Prompts that become a user's message. auto: instructions and questions, if the model has a chat template; texts
    to continue stay text. on: every text. off: none, and a conversation of one question becomes its text. Messages need
    a model with a chat template."""
    engine: PluginChoice = choice("engine", "transformers")
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    samples: SamplesSettings = field(default_factory=SamplesSettings)
    completions_from: RowSettings = field(default_factory=RowSettings)
    """Completions that are there already, with prompt and completions or of any shape of rankings; nothing is sampled
    then, and ranks found there are gold."""
    annotators: dict[str, AnnotatorSettings] = field(default_factory=lambda: {"reward": AnnotatorSettings()})
    """Annotators that rank, by names of your choice: [annotators.NAME]."""
    on_unreadable: OnUnreadable = "skip"
    """Prompts whose answer column a reward cannot read: skip counts and names them before the run, error refuses
    them."""
    gold: GoldSettings = field(default_factory=GoldSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def __post_init__(self) -> None:
        if not self.annotators:
            raise SettingsError("annotators is empty; expected at least one section [annotators.NAME]")
        for name in self.annotators:
            if not _NAME.fullmatch(name) or name == GOLD:
                raise SettingsError(
                    f"an annotator is named {name!r}; expected letters, digits, _ and -, and not {GOLD!r}, because "
                    "files and columns bear the name"
                )

    def unread_sections(self, plugins: object) -> dict[str, str]:
        """Return the settings that nothing reads because of another section, each with the one that it needs."""
        given = bool(self.completions_from.path)
        sampled = ("model", "prompts", "chat", "engine", "sampling", "samples")
        found = only_if(not given, "completions_from.path left out", *sampled)
        found |= only_if(self.chat == "auto", "chat=auto", "prompts.file.chat")
        unused = [f"completions_from.{name}" for name in all_but(self.completions_from, "path")]
        return found | only_if(given, "completions_from.path set", *unused)
