"""Decoders: what computes the next token's logits of every row that is being sampled.

``TransformersDecoder`` drives any causal LM of transformers; ``lmrl.engines.local.llama_decoder`` has a faster one for
some families. Leaves out: drawing, and when a row ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lmrl.algorithms.sequences import pad_rows
from lmrl.engines.local.cache import is_preallocated, make_cache, refuse_unfilled, select_rows


class Decoder(Protocol):
    """Holds the state of the rows that are decoded side by side; prompts are known to it by their numbers.

    ``refills`` says whether ``admit`` may put prompts into places that are free again, besides the first call.
    """

    refills: bool

    def admit(self, places: Tensor, numbers: Sequence[int]) -> Tensor:
        """Begin a response to prompt ``numbers[i]`` at ``places[i]``; return its first logits, (N, V).

        The first call fills all places, from 0 on.
        """
        ...

    def step(self, ids: Tensor, done: Tensor) -> Tensor:
        """Take every place's newest token, (B,), and return the logits of the next one, (B, V).

        Nothing that is returned for places that are ``done`` (B,) will be used.
        """
        ...

    def keep(self, places: Tensor) -> None:
        """Go on with these places alone, (N,), in this order."""
        ...


class TransformersDecoder:
    """Decoder over ``model(...)`` with a cache of transformers.

    One prefill per distinct prompt, whose cache is repeated for its samples. Prompts are padded on the left, so that
    every row's next column is the same; a mask (B, columns) is true on the real ones. Places that are free again are
    given new prompts where the cache is preallocated; the caches of other families are filled once.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], most_steps: int, turnover: bool) -> None:
        self.model, self.prompts = model, prompts
        self.longest = max(len(prompt) for prompt in prompts)
        # With turnover, the window wanders, and is brought back once in so many steps.
        self.capacity = self.longest + (2 if turnover else 1) * most_steps
        self.refills = False
        self.cache: Any = None
        self.end = self.longest
        """The column that the next token is written to."""
        self.first = self.longest
        """The first column that a row still needs."""
        self.begins: list[int] = []
        """The column where each row's prompt begins."""

    def admit(self, places: Tensor, numbers: Sequence[int]) -> Tensor:
        """Prefill each of these prompts once, and put them in; see ``Decoder``."""
        index = {number: row for row, number in enumerate(dict.fromkeys(numbers))}
        prompts = [self.prompts[number] for number in index]
        repeat = torch.tensor([index[number] for number in numbers], device=self.model.device)
        width = max(len(prompt) for prompt in prompts)
        begins = [self.end - len(self.prompts[number]) for number in numbers]
        if self.cache is None:
            cache = make_cache(self.model, self.capacity, self.longest - width)
            logits = _prefill(self.model, prompts, cache)
            select_rows(cache, repeat)
            self.cache, self.refills, self.begins = cache, is_preallocated(cache), begins
            self.first = self.end - width  # a cache of the family's own holds these columns, whatever is dropped
            self._mark()
        else:
            cache = make_cache(self.model, width)
            logits = _prefill(self.model, prompts, cache)
            for layer, filled in zip(self.cache.layers, cache.layers, strict=True):
                layer.put_rows(places, filled.keys[repeat], filled.values[repeat])
            for place, begin in zip(places.tolist(), begins, strict=True):
                self.begins[place] = begin
            self._mark()
        return logits[repeat]

    def step(self, ids: Tensor, done: Tensor) -> Tensor:
        """Run the newest tokens through the model; see ``Decoder``."""
        if self.end == self.capacity:
            self._bring_back()
        # Rows that wait to leave may already fill the context, and a position beyond it is no position at all.
        positions = (self.end - self.begin_columns).masked_fill(done, 0)
        self.end += 1
        logits: Tensor = self.model(
            input_ids=ids[:, None],
            past_key_values=self.cache,
            use_cache=True,
            position_ids=positions[:, None],
            attention_mask=self.mask[:, self.first : self.end] if self.mask is not None else None,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def keep(self, places: Tensor) -> None:
        """Take the other rows out of the cache; see ``Decoder``."""
        select_rows(self.cache, places)
        self.begins = [self.begins[place] for place in places.tolist()]
        self._mark()

    def _mark(self) -> None:
        """Let the window begin where the earliest row does, and mask what stands before each row."""
        if self.refills:
            self.first = min(self.begins)
            for layer in self.cache.layers:
                layer.narrow(self.first)
        self.begin_columns = torch.tensor(self.begins, device=self.model.device)
        self.mask = None
        if max(self.begins) > self.first:
            self.mask = torch.arange(self.capacity, device=self.model.device) >= self.begin_columns[:, None]

    def _bring_back(self) -> None:
        """Move the window back to the buffers' beginning, with room for the longest prompt before its end."""
        moved = self.first - max(0, self.longest - (self.end - self.first))
        for layer in self.cache.layers:
            layer.shift(self.first - moved)
        self.end -= moved
        self.begins = [begin - moved for begin in self.begins]
        self._mark()


def _prefill(model: Any, prompts: Sequence[Sequence[int]], cache: Any) -> Tensor:
    """Run prompts through the model, into an empty ``cache``; return the next-token logits, (N, V)."""
    ids, lengths = pad_rows(prompts, "left")
    width = ids.shape[1]
    begins = (width - lengths)[:, None]
    positions = torch.arange(width)[None, :] - begins
    logits: Tensor = model(
        input_ids=ids.to(model.device),
        past_key_values=cache,
        use_cache=True,
        position_ids=positions.clamp_min(0).to(model.device),
        attention_mask=(positions >= 0).to(model.device) if bool((begins > 0).any()) else None,
        logits_to_keep=1,
    ).logits[:, -1]
    refuse_unfilled(cache, model)
    return logits
