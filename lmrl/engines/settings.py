"""Settings of sampling and of the decode engines that ship with the core; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lmrl.config.unread import only_if
from lmrl.errors import SettingsError


@dataclass
class TransformersEngineSettings:
    """Settings of the default decode engine."""

    rows: int = 512
    """Rows decoded side by side at the most; others wait, and take the places of those that have ended."""
    compact_share: float = 0.125
    """Places of ended rows are refilled, or taken out of the batch, once they are this share of it; 0: each at once."""
    fast_path: bool = True
    """On a CPU, decode Llama, Mistral, Qwen2 and Qwen3 in a way that computes once what samples of a prompt share."""
    workers: int = 1
    """Processes of one thread each that share the rows, on a CPU: set it to the number of its cores, or less. 1 samples
    in the process itself, with its threads. The tokens are the same, but for rounding. A process takes about as much
    memory as a Python with torch; the weights are shared. `rows` counts over all of them."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise SettingsError(f"engine.transformers.workers is {self.workers}; expected an integer >= 1")


@dataclass
class SamplingSettings:
    """Settings of sampling."""

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
    """A response ends where its text first holds one of these; they are not part of it. A stop string may name special
    tokens, alone ("<|im_end|>") or with text."""
    forbidden_ids: list[int] = field(default_factory=list)
    """Token ids that are never drawn."""
    on_length: Literal["terminate", "truncate"] = "terminate"
    """terminate: a response cut off at its limit is scored; truncate: its score is withheld and values bootstrap."""

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.temperature != 0, "temperature above 0", "top_k", "top_p", "min_p")
