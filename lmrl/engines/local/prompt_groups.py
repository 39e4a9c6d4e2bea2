"""Prompts whose samples are decoded side by side: keys and values once, for ``lmrl.engines.local.llama_decoder``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PrefilledPrompt:
    """A prompt that has been prefilled: its keys and values, one (heads, length, width) per layer, and its logits."""

    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor

    @property
    def length(self) -> int:
        """The prompt's tokens."""
        return self.keys[0].shape[1]


class PromptGroups:
    """The prompts of the places: their keys and values once, and which places share them.

    Products are taken over (groups, samples); where all groups are as large and in order this is a view of the places,
    elsewhere their rows are gathered, and the places of samples that a group lacks repeat another row.
    """

    def __init__(self, layers: int, longest: int) -> None:
        self.longest = longest
        self.width = 0
        self.keys: list[Tensor] = [torch.empty(0)] * layers
        self.values: list[Tensor] = [torch.empty(0)] * layers
        self.homes: dict[int, int] = {}
        """The row of each prompt in ``keys`` and ``values``."""
        self._gather: Tensor | None = None
        self._scatter: Tensor | None = None
        self._samples = 0

    def arrange(self, numbers: Sequence[int], ready: dict[int, PrefilledPrompt]) -> None:
        """Hold the prompts of these places, (B,), and say where each one's samples are."""
        active = list(dict.fromkeys(numbers))
        if set(active) != set(self.homes):
            self._house(active, ready)
        self.width = max(ready[number].length for number in active)
        members: list[list[int]] = [[] for _ in range(len(self.keys[0]))]
        ranks = []
        for place, number in enumerate(numbers):
            group = members[self.homes[number]]
            ranks.append(len(group))
            group.append(place)
        self._samples = max(len(group) for group in members)
        padded = [(group + [0] * self._samples)[: self._samples] for group in members]
        gather = [place for group in padded for place in group]
        self._gather = self._scatter = None
        if gather != list(range(len(numbers))):
            self._gather = torch.tensor(gather)
            scatter = [self.homes[n] * self._samples + rank for n, rank in zip(numbers, ranks, strict=True)]
            self._scatter = torch.tensor(scatter)

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """Return queries (B, heads, repeats, width) times the prompts' keys, (B, heads, repeats, columns)."""
        grouped = self._group(queries)
        return self._ungroup(grouped @ self.keys[layer][:, :, : self.width].transpose(-1, -2))

    def weigh(self, layer: int, weights: Tensor) -> Tensor:
        """Return weights (B, heads, repeats, columns) times the prompts' values, (B, heads, repeats, width)."""
        return self._ungroup(self._group(weights) @ self.values[layer][:, :, : self.width])

    def _group(self, rows: Tensor) -> Tensor:
        """Return rows (B, heads, repeats, N) as (groups, heads, samples x repeats, N)."""
        if self._gather is not None:
            rows = rows.index_select(0, self._gather)
        grouped: Tensor = rows.unflatten(0, (-1, self._samples)).transpose(1, 2).flatten(2, 3)
        return grouped

    def _ungroup(self, grouped: Tensor) -> Tensor:
        """Undo ``_group``."""
        rows: Tensor = grouped.unflatten(2, (self._samples, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self._scatter is None else rows.index_select(0, self._scatter)

    def _house(self, active: list[int], ready: dict[int, PrefilledPrompt]) -> None:
        """Give every prompt a row; those that stay keep theirs, so that little is copied."""
        stays = {number: row for number, row in self.homes.items() if number in set(active)}
        rows = len(self.keys[0])
        if len(active) > rows or len(active) < rows // 2:
            stays, rows = {}, len(active)
            example = ready[active[0]]
            for layer, (keys, values) in enumerate(zip(example.keys, example.values, strict=True)):
                self.keys[layer] = keys.new_zeros(rows, keys.shape[0], self.longest, keys.shape[2])
                self.values[layer] = values.new_zeros(rows, values.shape[0], self.longest, values.shape[2])
        free = sorted(set(range(rows)) - set(stays.values()), reverse=True)
        self.homes = dict(stays)
        for number in active:
            if number in stays:
                continue
            row = self.homes[number] = free.pop()
            prompt = ready[number]
            for layer, (keys, values) in enumerate(zip(prompt.keys, prompt.values, strict=True)):
                self.keys[layer][row, :, : keys.shape[1]] = keys
                self.values[layer][row, :, : values.shape[1]] = values
