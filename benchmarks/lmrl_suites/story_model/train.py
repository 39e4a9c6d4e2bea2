"""Train the embedded model from scratch on the grammar: ``python -m lmrl_suites.story_model.train --output DIR``.

A small Llama, one story (or one story with a question and its answer) per row, from the split ``train`` only. What it
learned is measured on the split ``test``: loss next to the grammar's own entropy, and the gold measures of its samples.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lmrl.algorithms import lengths_to_mask
from lmrl.algorithms.sequences import pad_rows
from lmrl.stories.grammar import Split, Story, story
from lmrl.stories.prompts import question
from lmrl_suites.story_model.report import report
from lmrl_suites.story_model.tokenizer import EOS, PAD, save


@dataclass
class TrainingSettings:
    """The recipe of the embedded model; the defaults made the one in the package."""

    steps: int = 1200
    rows: int = 64
    """Rows per step."""
    question_share: float = 0.4
    """Share of rows that end with a question and its answer."""
    learning_rate: float = 4e-3
    """Peak; it rises over the first 5% of the steps and falls along a cosine to a tenth."""
    weight_decay: float = 0.1
    seed: int = 0
    context_length: int = 128
    hidden_size: int = 96
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 256
    samples: int = field(default=256)
    """Samples that the report is measured on."""


def row_text(told: Story, generator: random.Random, question_share: float) -> str:
    """Return the text of one training row, without the end-of-sequence token."""
    if generator.random() >= question_share:
        return told.text
    asked = question(told, generator)
    return f"{asked['prompt']} {asked['answer']}."


def batch(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return token ids (B, L), padded on the right, and labels (B, L), -100 on the padding; each row ends with EOS."""
    eos, pad = tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD)
    rows = [[*encoding.ids, eos] for encoding in tokenizer.encode_batch(texts)]
    ids, lengths = pad_rows(rows, fill=pad)
    return ids, ids.masked_fill(~lengths_to_mask(lengths, ids.shape[1]), -100)


class Sizes(Protocol):
    """Sizes of a small Llama."""

    hidden_size: int
    layers: int
    heads: int
    context_length: int


def new_model(sizes: Sizes, intermediate_size: int, tokenizer: Any) -> Any:
    """Return an untrained Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=sizes.hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=sizes.context_length,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def train(output: Path, settings: TrainingSettings | None = None) -> dict[str, float]:
    """Train, save model and tokenizer into ``output``, print the report and return its figures."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    settings = settings or TrainingSettings()
    torch.manual_seed(settings.seed)
    generator = random.Random(f"lmrl.stories/train/{settings.seed}")
    tokenizer = save(output, settings.context_length)
    model = new_model(settings, settings.intermediate_size, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=settings.steps)
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings.steps)
            split: Split = "train"
            texts = [
                row_text(story(generator, split), generator, settings.question_share) for _ in range(settings.rows)
            ]
            ids, labels = batch(tokenizer, texts)
            # Padding is on the right of causal attention, so no real token sees it and no attention mask is needed.
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.update(task, advance=1, description=f"training, {loss.item():.3f} nats per token")
    model.eval()
    model.generation_config.do_sample = True
    model.save_pretrained(output)
    return report(model, tokenizer, settings.samples)


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a linear rise, then a cosine down to a tenth."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    defaults = TrainingSettings()
    parser = argparse.ArgumentParser(prog="python -m lmrl_suites.story_model.train", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=defaults.samples, help="for the report; default: %(default)s")
    parsed = parser.parse_args(arguments)
    if parsed.steps < 1 or parsed.samples < 1:
        parser.error("--steps and --samples must be at least 1")
    train(parsed.output, TrainingSettings(steps=parsed.steps, seed=parsed.seed, samples=parsed.samples))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
