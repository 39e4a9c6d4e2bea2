"""Decoder without a cache, for models whose state is not in the cache of transformers, and the trial that finds them.

It computes whole rows at every step: slow, and right for every causal language model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lmrl.algorithms.sequences import pad_rows
from lmrl.engines.local.decoder import Decoder, TransformersDecoder

logger = logging.getLogger(__name__)
TRIAL = ((0, 1, 2), (3,))
"""Prompts of the trial, as places in the vocabulary; two rows share the first."""
DRAWN = ((4, 5, 6), (7, 8, 9))
"""Tokens that the three rows of the trial are given in its two steps."""
_tried: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def general_decoder(model: Any, prompts: Sequence[Sequence[int]], most_steps: int, turnover: bool = False) -> Decoder:
    """Return a decoder for any causal language model: with a cache where that gives the logits of whole rows."""
    if decodes_in_steps(model):
        return TransformersDecoder(model, prompts, most_steps, turnover)
    return PlainDecoder(model, prompts)


class PlainDecoder:
    """Decoder that runs every row through the model at every step; see ``lmrl.engines.local.decoder.Decoder``."""

    refills = True

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.prompts = model, prompts
        self.rows: list[list[int]] = []

    def admit(self, places: Tensor, numbers: Sequence[int]) -> Tensor:
        """Begin these rows with their prompts; see ``Decoder``."""
        for place, number in zip(places.tolist(), numbers, strict=True):
            self.rows[place : place + 1] = [list(self.prompts[number])]
        return row_logits(self.model, [self.rows[place] for place in places.tolist()])

    def step(self, ids: Tensor, done: Tensor) -> Tensor:
        """Add the newest tokens to their rows; see ``Decoder``."""
        for row, token, ended in zip(self.rows, ids.tolist(), done.tolist(), strict=True):
            if not ended:
                row.append(token)
        return row_logits(self.model, self.rows)

    def keep(self, places: Tensor) -> None:
        """Drop the other rows; see ``Decoder``."""
        self.rows = [self.rows[place] for place in places.tolist()]


def row_logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits of the token that follows each row, (B, V), in one forward pass without a cache."""
    ids, lengths = pad_rows(rows, device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[torch.arange(len(rows), device=model.device), lengths - 1]


def decodes_in_steps(model: Any) -> bool:
    """Return whether steps with a cache give the logits of whole rows; tried once per model.

    Some families keep their state in the model instead of the cache (RecurrentGemma, RWKV), so samples that share a
    prompt would continue from the state of another row. A model of several ``parts`` is tried part by part.
    """
    parts = getattr(model, "parts", (model,))
    return all([_part_decodes(part) for part in parts])


def _part_decodes(model: Any) -> bool:
    if model not in _tried:
        _tried[model] = _agrees(model)
        if not _tried[model]:
            logger.warning(
                "%s does not keep its whole state in the cache of transformers, so responses are decoded without a "
                "cache: every step computes whole rows, which is slow.",
                type(model).__name__,
            )
    return _tried[model]


@torch.no_grad()
def _agrees(model: Any) -> bool:
    """Decode three rows, two of them samples of one prompt, in steps and whole; the second is dropped on the way."""
    size = model.get_input_embeddings().weight.shape[0]
    token = [(1 + 7 * place) % size for place in range(10)]
    prompts = [[token[place] for place in prompt] for prompt in TRIAL]
    device, plain = model.device, PlainDecoder(model, prompts)
    places, numbers, left = torch.arange(3, device=device), [0, 0, 1], torch.tensor([0, 2], device=device)
    first, second = (torch.tensor([token[place] for place in drawn], device=device) for drawn in DRAWN)
    done = torch.zeros(3, dtype=torch.bool, device=device)
    try:
        steps = TransformersDecoder(model, prompts, len(DRAWN), turnover=False)
        pairs = [(steps.admit(places, numbers), plain.admit(places, numbers))]
        pairs.append((steps.step(first, done), plain.step(first, done)))
        steps.keep(left)
        plain.keep(left)
        pairs.append((steps.step(second[left], done[left]), plain.step(second[left], done[left])))
    except Exception:  # a family's own code, which may fail in any way on a cache that it does not know
        return False
    tolerance = 1e-4 if pairs[0][0].dtype == torch.float32 else 6e-2
    return all(bool((one - other).abs().max() <= tolerance * other.abs().max()) for one, other in pairs)
