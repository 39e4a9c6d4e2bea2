"""The configuration of `lmrl eval`: one dataclass per section of the recipe; field docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lmrl.config import PluginChoice, all_but, choice, only_if
from lmrl.data import RowSettings
from lmrl.engines.settings import SamplingSettings
from lmrl.errors import SettingsError
from lmrl.judges.settings import JudgeSettings
from lmrl.rewards.scorable import OnUnreadable
from lmrl.training.settings import RunSettings, require_at_least


@dataclass
class HeldOutSettings:
    """Prompts that are answered, and samples of each."""

    prompts: int = 128
    """Prompts held out of the data, the same ones as `lmrl rl` holds out with this number as evaluation.prompts and
    this seed; 0 takes every prompt of the data."""
    seed: int = 0
    """The run.seed of the RL run whose held-out prompts these are."""
    samples_per_prompt: int = 1
    """Answers to each prompt; intervals are over prompts all the same."""

    def __post_init__(self) -> None:
        require_at_least("held_out", self, {"prompts": 0, "samples_per_prompt": 1})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.prompts > 0, "prompts above 0", "seed")


@dataclass
class WinSettings:
    """Annotator that compares the answers of two models; empty answers lose unseen."""

    kind: Literal["reward", "judge", "person", "none"] = "reward"
    """reward: the answer with the higher reward; judge: a language model, asked in both orders; person: you, in the
    terminal; none: no win rates."""
    reward: str = ""
    """For kind = "reward": which one; empty is the first of `rewards`."""
    tolerance: float = 0.0
    """For kind = "reward": a difference of at most this much is a tie."""
    baseline: str = ""
    """Name of the model that the others are compared with; empty is the first one."""
    judge: JudgeSettings = field(default_factory=JudgeSettings)

    def __post_init__(self) -> None:
        require_at_least("wins", self, {"tolerance": 0})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        found = only_if(self.kind == "reward", "kind=reward", "reward", "tolerance")
        found |= only_if(self.kind != "none", "kind=reward, judge or person", "baseline")
        return found | only_if(self.kind == "judge", "kind=judge", "judge")


@dataclass
class BestOfSettings:
    """A further column: the best of N answers of one model."""

    n: int = 0
    """Answers of which the best one counts; 0 leaves the column out."""
    samples: int = 0
    """Answers drawn per prompt, from all of which the value of N is estimated; 0 draws N."""
    model: str = ""
    """Name of the model that answers; empty is the first one."""
    reward: str = ""
    """The reward that chooses; empty is the last of `rewards`. It is judged by all of them."""

    def __post_init__(self) -> None:
        require_at_least("best_of", self, {"n": 0, "samples": 0})
        if self.samples and self.samples < self.n:
            raise SettingsError(
                f"best_of.samples is {self.samples} and best_of.n {self.n}; expected at least n samples"
            )

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.n > 0, "n above 0", *all_but(self, "n"))


@dataclass
class TextSettings:
    """Reference texts, of which perplexity and bits per byte are measured."""

    rows: RowSettings = field(default_factory=RowSettings)
    """Their source: prompts with completions or conversations, whose answers count, or plain texts; no path: none."""
    kind: Literal["auto", "examples", "plain"] = "auto"
    """plain: a text file, or a column `text`; examples: any format of `lmrl sft`; auto: plain if there is a column
    `text` or the file ends in .txt."""
    context: int = 0
    """Tokens that plain text is cut into, one of them shared with the piece before; 0 is the model's context, of all
    models the shortest."""

    characters: int = 0
    """Use the first so many characters of plain texts together; 0 uses all."""

    def __post_init__(self) -> None:
        require_at_least("texts", self, {"context": 0, "characters": 0})

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        unused = (*all_but(self, "rows"), *(f"rows.{name}" for name in all_but(self.rows, "path")))
        found = only_if(bool(self.rows.path), "rows.path set", *unused)
        return found | only_if(self.kind != "examples", "kind=plain", "context", "characters")


@dataclass
class EvaluateConfig:
    """Everything that `lmrl eval` can be told."""

    models: list[str] = field(default_factory=list)
    """Folders of models or runs, or hub ids; "stories" is the embedded story model, which is also the default."""
    names: list[str] = field(default_factory=list)
    """A name for each model, such as base, SFT and RLHF; left out, names come from the folders."""
    reference: str = ""
    """Folder or hub id of the model to which the KL is measured; empty: none is."""
    trust_remote_code: bool = False
    """Run Python code that a model or tokenizer comes with; read that code first."""
    rewards: list[str] | None = None
    """Rewards that score the responses, by registered name, module:function or folder of a reward model; plots and win
    rates show the first one. [] measures none. Left out, it is happy_end, for the embedded story model alone."""
    reward_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of rewards, a table for each by its name."""
    on_unreadable: OnUnreadable = "skip"
    """Prompts whose answer column a reward cannot read: skip counts and names them before the run, error refuses
    them."""
    bounds: dict[str, list[float]] = field(default_factory=dict)
    """Least and greatest value of a reward, for its interval; left out, they are taken from what was seen."""
    run: RunSettings = field(default_factory=RunSettings)
    prompts: PluginChoice = choice("dataset", "stories")
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    chat: Literal["auto", "on", "off"] = "auto"
    """auto: conversations, instructions and questions are rendered by the chat template of each model that has one, and
    other texts are completed, as in `lmrl rl`; on: every text is a user's message; off: all prompts are completed as
    text."""
    system: str = ""
    """System prompt of models that are chatted with."""
    engine: PluginChoice = choice("engine", "transformers")
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    wins: WinSettings = field(default_factory=WinSettings)
    best_of: BestOfSettings = field(default_factory=BestOfSettings)
    texts: TextSettings = field(default_factory=TextSettings)
    show: int = 5
    """Prompts whose answers are shown side by side."""

    def __post_init__(self) -> None:
        if self.show < 0:
            raise SettingsError(f"show is {self.show}; expected a number of at least 0")
        for name, pair in self.bounds.items():
            if len(pair) != 2 or not pair[0] < pair[1]:
                raise SettingsError(f"bounds.{name} is {pair}; expected the least and the greatest value, [-1, 1] say")

    def unread_sections(self, plugins: object) -> dict[str, str]:
        """Return the settings that nothing reads because of another section, each with the one that it needs."""
        columns = len(self.models) + (self.best_of.n > 0)
        found = only_if(columns > 1, "two models or more", "wins")
        scored = self.rewards != []
        found |= only_if(scored, "rewards naming one", "on_unreadable", "reward_settings", "bounds")
        found |= only_if(scored or self.wins.kind != "reward", "rewards naming one", "wins")
        found |= only_if(self.chat == "auto", "chat=auto", "prompts.file.chat")
        return found | only_if(self.chat != "off", "chat=auto or on", "system")
