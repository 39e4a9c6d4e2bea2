"""Measures of a story model on prompts of the split ``test``: ``report(model, tokenizer)``."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from lmrl.stories.grammar import Split, generator_of, story
from lmrl.stories.measures import is_happy, object_consistency
from lmrl.stories.prompts import openings, questions
from lmrl_suites.story_model.tokenizer import EOS, PAD

TEST: Split = "test"


def report(model: Any, tokenizer: Any, samples: int = 256, seed: int = 1) -> dict[str, float]:
    """Print and return the figures: loss, entropy of the grammar, shares over sampled stories and answers."""
    prompts = openings(seed, samples, TEST)
    asked = questions(seed, samples, TEST)
    texts, ended = continuations(model, tokenizer, prompts, 64, seed)
    answers, _ = continuations(model, tokenizer, [row["prompt"] for row in asked], 12, seed)
    ends = [is_happy(text) for text in texts]
    figures = {
        "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
        "held-out nats per token": held_out_loss(model, tokenizer),
        "grammar's nats per token": grammar_entropy(tokenizer),
        "objects consistent": mean(object_consistency(*pair) == 1.0 for pair in zip(prompts, texts, strict=True)),
        "ended within 64 tokens": mean(ended),
        "happy end": mean(end is True for end in ends),
        "sad end": mean(end is False for end in ends),
        "no end": mean(end is None for end in ends),
        "answers right": mean(text.strip(" .") == row["answer"] for text, row in zip(answers, asked, strict=True)),
    }
    for name, figure in figures.items():
        print(f"{name:26} {figure:.4g}" if figure > 1 else f"{name:26} {figure:.3f}")
    for prompt, text in zip(prompts[:5], texts[:5], strict=True):
        print(f"- {prompt} |{text}")
    return figures


def mean(values: Any) -> float:
    """Return the mean of some numbers or truths."""
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)


def held_out_loss(model: Any, tokenizer: Any, stories: int = 1000, seed: int = 2) -> float:
    """Return the mean negative log-likelihood in nats of the tokens of test stories, EOS too, the first token not."""
    from lmrl_suites.story_model.train import batch

    generator = generator_of(seed, "report")
    total, count = 0.0, 0
    for start in range(0, stories, 100):
        texts = [story(generator, TEST).text for _ in range(min(100, stories - start))]
        ids, labels = batch(tokenizer, texts)
        tokens = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels, use_cache=False).loss.item() * tokens
        count += tokens
    return total / count


def grammar_entropy(tokenizer: Any, stories: int = 20000, seed: int = 3) -> float:
    """Return the grammar's entropy in nats per token, counted as ``held_out_loss`` counts: the best possible loss."""
    generator = generator_of(seed, "report")
    drawn = [story(generator) for _ in range(stories)]
    first_words = Counter(one.text.split(" ")[0] for one in drawn)
    first = -sum(count / stories * math.log(count / stories) for count in first_words.values())
    tokens = mean(len(encoding.ids) for encoding in tokenizer.encode_batch([one.text for one in drawn]))
    return (mean(-one.log_probability for one in drawn) - first) / tokens


def continuations(
    model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int, seed: int
) -> tuple[list[str], list[bool]]:
    """Sample one continuation of each prompt at temperature 1: texts, and whether each ended by itself."""
    eos, pad = tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(prompts)]
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    torch.manual_seed(seed)
    with torch.no_grad():
        full = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=max_new_tokens
        )
    texts, ended = [], []
    for row, prompt, generated in zip(rows, prompts, full[:, width:].tolist(), strict=True):
        ended.append(eos in generated)
        response = generated[: generated.index(eos)] if eos in generated else generated
        texts.append(tokenizer.decode(row + response)[len(tokenizer.decode(row)) :] if prompt else "")
    return texts, ended
