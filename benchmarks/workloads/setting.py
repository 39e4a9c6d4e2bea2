"""The model and the sizes that all workloads share."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.models import LanguageModel, load
from lmrl.models.loading import no_transformers_bars
from lmrl.sampling import SamplingSpec
from lmrl.sampling.transformers_engine import TransformersEngine
from lmrl.testing import write_tiny_model

SHAPES = {"0.3M": (104, 2), "1M": (176, 3), "10M": (368, 8), "smoke": (16, 1)}
"""Width and layers of the random Llamas, by their number of parameters."""
VOCABULARY = 512
STOP_SHARE = 1 / 16
"""Probability per step of ending a response in the workloads with varying lengths."""


@dataclass
class Setting:
    """What is measured: a model, how many rows of how many tokens, and how often."""

    name: str
    language_model: LanguageModel
    rows: int
    new_tokens: int
    runs: int
    environment_steps: int
    prompt: str
    stop_ids: tuple[int, ...] = ()

    @property
    def prompt_ids(self) -> list[int]:
        """The one prompt's tokens."""
        return list(self.language_model.card.codec.encode(self.prompt))

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return sum(parameter.numel() for parameter in self.language_model.model.parameters())

    def fresh_model(self) -> Any:
        """Return a copy of the model that may be trained."""
        return copy.deepcopy(self.language_model.model)

    def spec(self, varying: bool) -> SamplingSpec:
        """Return how tokens are drawn: at full length, or with rows that end after ``1 / STOP_SHARE`` on average."""
        return SamplingSpec(max_new_tokens=self.new_tokens, eos_ids=self.stop_ids if varying else ())


def write_model(folder: Path, size: str) -> Path:
    """Write a random Llama of ``size`` whose next token is close to uniform."""
    width, layers = SHAPES[size]
    words = [f"w{number}" for number in range(VOCABULARY - 3)]
    with no_transformers_bars():
        return write_tiny_model(folder, words=words, context=256, width=width, layers=layers, scale=0.1)


def make_setting(folder: Path, name: str, runs: int, smoke: bool) -> Setting:
    """Load the model and choose the tokens that end a row."""
    language_model = load(folder)
    setting = Setting(
        name=name,
        language_model=language_model,
        rows=8 if smoke else 64,
        new_tokens=8 if smoke else 64,
        runs=runs,
        environment_steps=64 if smoke else 1024,
        prompt=language_model.card.codec.decode_batch([range(10, 18)])[0],
    )
    setting.stop_ids = choose_stop_ids(setting)
    return setting


def choose_stop_ids(setting: Setting) -> tuple[int, ...]:
    """Return tokens that were ``STOP_SHARE`` of those sampled, in random order: rows then end geometrically."""
    import torch

    samples = TransformersEngine().generate(
        setting.language_model.model, [setting.prompt_ids] * 64, SamplingSpec(max_new_tokens=64), seed=0
    )
    vocabulary = setting.language_model.card.vocab_size
    share = torch.bincount(samples.inputs.response_ids.flatten(), minlength=vocabulary) / (64 * 64)
    order = list(range(vocabulary))
    random.Random(0).shuffle(order)
    chosen, total = [], 0.0
    for token in order:
        if share[token] > 0 and total + float(share[token]) <= STOP_SHARE:
            chosen.append(token)
            total += float(share[token])
    return tuple(sorted(chosen))
