"""The likelihood of held-out documents: nats per token and bits per byte, every token predicted exactly once.

A document is read after an end token (or the BOS that its tokenizer puts first), as in training and in sampling, and
its own end token is part of what is predicted: the sum is the length of a code from which the documents can be read
back one by one. Bits per byte compare models with different tokenizers; nats per token do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lmrl.corpus import TokenStream


@dataclass(frozen=True)
class Window:
    """Tokens to read, and how many of the last ones count: one prediction each, for the token that follows it."""

    tokens: Any
    counted: int


@dataclass(frozen=True)
class HeldOut:
    """Windows over whole documents, with the bytes and tokens that they stand for."""

    windows: Sequence[Window]
    text_bytes: int
    tokens: int
    documents: int


def held_out_windows(
    stream: TokenStream, context_length: int, eos_id: int, prefix: Sequence[int], max_tokens: int, overlap: float
) -> HeldOut:
    """Return the windows over the first documents of a split, at least one and at most ``max_tokens`` (0: all)."""
    windows: list[Window] = []
    size = tokens = documents = 0
    for number in range(stream.documents):
        row, length = stream.document(number)
        if max_tokens and documents and tokens + len(row) > max_tokens:
            break
        if not prefix:  # what stands before a document in the packed stream
            row = np.concatenate([[eos_id], row])
        windows += document_windows(row, max(len(prefix), 1), context_length, overlap)
        size += length
        tokens += len(row) - max(len(prefix), 1)
        documents += 1
    return HeldOut(windows, size, tokens, documents)


def document_windows(row: Any, given: int, context_length: int, overlap: float) -> list[Window]:
    """Cut a document, its first ``given`` tokens not to be predicted, into windows of at most a context.

    ``tokens`` of a window are inputs and, shifted by one, targets: (T + 1,). Windows after the first one begin
    ``overlap`` of a context before the first token that they predict.
    """
    windows: list[Window] = []
    done = given  # tokens before this are given or predicted
    while done < len(row):
        behind = done if not windows else max(1, int(overlap * context_length))
        start = max(0, done - behind) if windows else 0
        stop = min(len(row), start + context_length + 1)
        windows.append(Window(row[start:stop], stop - done))
        done = stop
    return windows


@torch.no_grad()
def total_nats(module: Any, windows: Sequence[Window], device: torch.device, budget: int) -> float:
    """Return the negative log-likelihood of all counted tokens, summed; windows of like length share a pass."""
    order = sorted(windows, key=lambda window: -len(window.tokens))
    total = torch.zeros((), dtype=torch.float64)
    place = 0
    while place < len(order):
        width = len(order[place].tokens) - 1
        group = order[place : place + max(1, budget // width)]
        place += len(group)
        inputs = torch.zeros(len(group), width, dtype=torch.long)
        targets = torch.full((len(group), width), -100)
        for index, window in enumerate(group):
            row = torch.from_numpy(np.ascontiguousarray(window.tokens))
            inputs[index, : len(row) - 1] = row[:-1]  # what follows is padding, which no causal token sees
            targets[index, len(row) - 1 - window.counted : len(row) - 1] = row[len(row) - window.counted :]
        logits = module(input_ids=inputs.to(device), use_cache=False).logits.float()
        nats = functional.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction="sum")
        total += nats.double().cpu()
    return float(total)


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Return a code's bits per byte of text.

    >>> round(bits_per_byte(1386.2943611198906, 1000), 3)
    2.0
    """
    return nats / math.log(2) / text_bytes
