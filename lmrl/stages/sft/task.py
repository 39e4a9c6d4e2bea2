"""Task of supervised fine-tuning for the loop that supervised stages share: batches, loss, evaluation, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmrl.engines.protocol import SamplingSpec
from lmrl.engines.texts import sample_texts
from lmrl.models.adapters import ADAPTER_FOLDER, load_adapter, merged_copy, save_adapter
from lmrl.models.loading import LOADER, LanguageModel
from lmrl.models.saving import read_back, save_model
from lmrl.seeds import PromptOrder, derive_seed
from lmrl.stages.sft.batches import AnswerModel, Microbatch, Row, make_microbatches
from lmrl.stages.sft.rows import Question
from lmrl.statistics.intervals import bootstrap_interval
from lmrl.text.folders import copy_tokenizer


@dataclass(frozen=True)
class SampleText:
    """A held-out prompt with the data's answer and the model's."""

    prompt: str
    reference: str
    answer: str

    def __str__(self) -> str:
        return f"prompt: {self.prompt}\nreference: {self.reference}\nanswer: {self.answer}"


@dataclass
class SFTTask:
    """Learning to say the trained tokens of ``rows``; a ``Task`` of ``lmrl.training.supervised``.

    ``adapted`` is the ``peft.PeftModel`` around ``language_model.model`` where an adapter learns. ``tokenizer_folder``
    is what checkpoints copy; ``keeps`` holds the temporary folder that it may be.
    """

    language_model: LanguageModel
    adapted: Any
    tokenizer_folder: str
    keeps: TemporaryDirectory[str] | None
    rows: Sequence[Row]
    held_out: Sequence[Row]
    questions: Sequence[Question]
    order: PromptOrder
    budget: int
    packed: bool
    width: int
    spec: SamplingSpec
    seed: int
    dtype: torch.dtype = torch.float32
    unit: str = "token"
    samples: list[SampleText] = field(default_factory=list)
    first_samples: list[SampleText] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = self.language_model.model
        self.module: nn.Module = AnswerModel(self.model)

    def microbatches(self, step: int, rank: int, ranks: int) -> list[Microbatch]:
        """Return this rank's share of a step's examples."""
        indices = self.order.indices(step - 1)
        share = len(indices) // ranks
        mine = [self.rows[index] for index in indices[rank * share : (rank + 1) * share]]
        return make_microbatches(mine, self.budget, self.packed, self.width)

    def count(self, microbatch: Microbatch) -> int:
        """Return the tokens with a loss."""
        return microbatch.count

    def tokens(self, microbatch: Microbatch) -> int:
        """Return the positions that are computed."""
        return microbatch.tokens

    def loss(self, module: nn.Module, microbatch: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of negative log-likelihoods in nats, and how many tokens were the likeliest."""
        nats, hits = self._answers(module, microbatch)
        return nats.sum(), {"accuracy": hits.sum()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Return the held-out loss in nats per trained token with its interval over examples, and what follows."""
        if not self.held_out:
            return {}
        nats = torch.zeros(len(self.held_out), dtype=torch.float64)
        counts = torch.zeros(len(self.held_out), dtype=torch.float64)
        hits = 0
        for microbatch in make_microbatches(self.held_out, self.budget, self.packed, self.width):
            losses, right = self._answers(module, microbatch)
            nats.index_add_(0, microbatch.owners, losses.detach().double().cpu())
            counts.index_add_(0, microbatch.owners, torch.ones(microbatch.count, dtype=torch.float64))
            hits += int(right.sum())
        numbers = {
            "loss": float(nats.sum() / counts.sum()),
            "accuracy": hits / float(counts.sum()),
            "tokens": float(counts.sum()),
        }
        numbers["perplexity"] = math.exp(min(numbers["loss"], 700.0))
        interval = bootstrap_interval(np.asarray(nats), np.asarray(counts))
        if math.isfinite(interval.low):  # one example has no interval, and JSON no infinity
            numbers |= {"loss_low": interval.low, "loss_high": interval.high}
        return numbers

    def texts(self) -> list[str]:
        """Answer the held-out prompts, always with the same seed."""
        if not self.questions:
            return []
        rows = [question.ids for question in self.questions]
        answers = sample_texts(self.language_model, rows, self.spec, derive_seed(self.seed, "samples"))
        self.samples = [
            SampleText(question.prompt, question.reference, answer.text.strip())
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        self.first_samples = self.first_samples or self.samples
        return [str(sample) for sample in self.samples]

    def speed(self, tokens_per_second: float) -> dict[str, float]:
        """Return nothing further: the share of the peak means little for short rows."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the model with the adapter merged, the tokenizer with its chat template, and the adapter itself."""
        model = self.model if self.adapted is None else merged_copy(self.adapted)
        save_model(model, folder, self.dtype, resumable=self.adapted is None)  # an adapter is stored as it is
        if self.adapted is not None:
            save_adapter(self.adapted, folder)
            # With its tokenizer, so that PEFT's own loader makes room for new tokens in the base model.
            copy_tokenizer(self.tokenizer_folder, folder / ADAPTER_FOLDER)
        copy_tokenizer(self.tokenizer_folder, folder)

    def load(self, folder: Path) -> None:
        """Read a checkpoint's weights back: the adapter's where there is one, all of the model's otherwise."""
        if self.adapted is not None:
            load_adapter(self.adapted, folder)
            return
        read_back(self.model, folder, LOADER, self.language_model.card.trust_remote_code)

    def _answers(self, module: nn.Module, microbatch: Microbatch) -> tuple[Tensor, Tensor]:
        device = self.model.device
        positions = None if microbatch.positions is None else microbatch.positions.to(device)
        nats, hits = module(
            microbatch.ids.to(device), positions, microbatch.predicts.to(device), microbatch.targets.to(device)
        )
        return nats, hits
