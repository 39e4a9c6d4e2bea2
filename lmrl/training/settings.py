"""Sections that several stages share: where a run is kept, and when it is saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lmrl.config import only_if, unread_note
from lmrl.errors import SettingsError
from lmrl.training.run import is_main_process

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager

logger = logging.getLogger(__name__)


def note_unread(config: Any, plugins: PluginManager) -> None:
    """Log, once and counted, the settings of a configuration that the run does not read."""
    note = unread_note(config, plugins)
    if note and is_main_process():
        logger.info(note)


def require_at_least(section: str, settings: Any, lowest: Mapping[str, int]) -> None:
    """Raise ``SettingsError`` for the first of the named settings that lies below its lowest value."""
    for name, bound in lowest.items():
        if not getattr(settings, name) >= bound:
            raise SettingsError(f"{section}.{name} is {getattr(settings, name)}; expected a number of at least {bound}")


@dataclass
class RunSettings:
    """Folder, seed and device of a run."""

    folder: str = ""
    """Folder of the run; empty is the next free runs/<stage>-<n>; of `lmrl rl`, runs/<optimizer>-<n>."""
    seed: int = 0
    """Everything random derives from it: sampling, order of prompts, minibatches, held-out split."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one (CUDA_VISIBLE_DEVICES says which), cpu never does."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision of forward passes; auto is bf16 on a GPU that has it and full precision on a CPU, where bf16 is slower.
    Log-probabilities, values and losses are float32 in any case. prefer and eval, which do not train, load weights in
    it; auto keeps the checkpoint's own precision on a GPU."""


@dataclass
class CheckpointSettings:
    """Checkpoints of a run."""

    every: int = 50
    """Updates between checkpoints; the last one is always made. 0: only that one."""
    keep: int = 2
    """Checkpoints kept; older ones are removed."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the saved model; auto is that of the checkpoint that training started from. Half precision stores
    the float32 weights as well, in training_weights.safetensors, from which a resumed run continues."""

    def __post_init__(self) -> None:
        require_at_least("checkpoint", self, {"every": 0, "keep": 1})


@dataclass
class SupervisedSettings:
    """Optimization in a supervised stage; a stage adds the size of its batches."""

    steps: int = 1000
    """Gradient steps."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after the warm-up."""
    final_share: float = 0.1
    """The share of the peak that a linear or cosine schedule ends at."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 switches it off."""
    weight_decay: float = 0.1
    """Decoupled weight decay of AdamW, on matrices only."""
    adam_beta1: float = 0.9
    """AdamW's decay of the gradient's mean."""
    adam_beta2: float = 0.95
    """AdamW's decay of the gradient's second moment."""
    evaluate_every: int = 100
    """Steps between evaluations; the first and the last are always made. 0: only those two."""

    def __post_init__(self) -> None:
        require_at_least("train", self, {"steps": 1, "warmup_steps": 0, "evaluate_every": 0})
        require_at_least(
            "train", self, dict.fromkeys(("learning_rate", "final_share", "max_gradient_norm", "weight_decay"), 0)
        )

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.schedule != "constant", "schedule=linear or cosine", "final_share")
