"""Parts that all workloads of one model share: its folder, prompts, device, and the peaks of rates."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lmrl.engines.protocol import SamplingSpec
from lmrl_suites.throughput.peaks import Peaks
from lmrl_suites.throughput.setting import Cell, ThroughputSettings
from lmrl_suites.throughput.shapes import SHAPES, Shape, prompt_rows, prompt_text, write_model


@dataclass
class Stage:
    """One model on disk, and how it is used."""

    settings: ThroughputSettings
    size: str
    folder: Path
    peaks: Peaks | None = None
    runs: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="lmrl-throughput-")))

    @classmethod
    def write(cls, settings: ThroughputSettings, size: str, folder: Path, peaks: Peaks | None) -> Stage:
        """Write the model of this size below ``folder``."""
        context = settings.prompt_tokens + settings.new_tokens
        path = write_model(folder / size, SHAPES[size], context)
        return cls(settings, size, path, peaks, folder)

    @property
    def shape(self) -> Shape:
        """The model's sizes."""
        return SHAPES[self.size]

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return self.settings.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision that is computed in."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @cached_property
    def model(self) -> Any:
        """The model that is sampled from, in the precision that is computed in."""
        from lmrl.models import load

        return load(self.folder, device=self.device, dtype=self.dtype).model

    def release(self) -> None:
        """Let go of the model and of what torch keeps of a GPU's memory."""
        self.__dict__.pop("model", None)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def spec(self, lengths: str, new_tokens: int = 0) -> SamplingSpec:
        """Return how tokens are drawn; full length has no EOS."""
        eos_ids = self.shape.stop_ids if lengths == "varying" else ()
        return SamplingSpec(max_new_tokens=new_tokens or self.settings.new_tokens, eos_ids=eos_ids)

    def distinct_prompts(self, count: int) -> list[list[int]]:
        """Return ``count`` random prompts; fewer are the first of more."""
        return prompt_rows(self.shape.vocabulary, count, self.settings.prompt_tokens)

    def prompts(self, cell: Cell) -> list[list[int]]:
        """Return the prompt of every row, the members of a group side by side."""
        distinct = self.distinct_prompts(cell.rows // cell.group_size)
        return [prompt for prompt in distinct for _ in range(cell.group_size)]

    def texts(self, count: int) -> list[str]:
        """Return the same prompts as text."""
        return [prompt_text(prompt) for prompt in self.distinct_prompts(count)]
