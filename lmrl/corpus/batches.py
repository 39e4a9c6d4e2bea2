"""Blocks of packed tokens in a random order that is a function of (seed, epoch), so a resume restores nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmrl.corpus.tokens import TokenStream
from lmrl.errors import DataError
from lmrl.seeds import derive_seed

ROUNDS = 4


@dataclass(frozen=True)
class TokenRows:
    """Rows of a batch: ``tokens`` (B, T + 1), of which the first T are read and the last T are predicted.

    ``positions`` (B, T) count from each document's beginning, where attention is not to cross documents: from positions
    that begin anew transformers makes a mask that keeps the documents of a row apart.
    """

    tokens: Any
    positions: Any | None = None


class Shuffle:
    """A random order of ``range(size)`` in constant memory: a Feistel network of four rounds over the next power of
    four, walked until it falls inside (Black and Rogaway 2002, the generalised Feistel cipher's cycle walking)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.half_bits = max(1, ((max(size - 1, 1)).bit_length() + 1) // 2)
        self.keys = [derive_seed(seed, "shuffle", number) & 0xFFFFFFFF for number in range(ROUNDS)]

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.size:
            raise IndexError(place)
        value = self._cipher(place)
        while value >= self.size:
            value = self._cipher(value)
        return value

    def _cipher(self, value: int) -> int:
        mask = (1 << self.half_bits) - 1
        left, right = value >> self.half_bits, value & mask
        for key in self.keys:
            mixed = ((right + key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & mask)
        return (left << self.half_bits) | right


class TokenDataset:
    """Blocks of ``context_length`` tokens of a split, each seen once per epoch.

    Every epoch cuts the stream at another offset, so that over epochs a token stands at every place of a block. With
    ``cross_documents=False`` positions begin anew with every document. As an input, an end token belongs to the
    document that follows it, which is what a model sees when it begins a text after an end token.
    """

    def __init__(self, stream: TokenStream, context_length: int, seed: int, cross_documents: bool = True) -> None:
        if len(stream) <= context_length:
            raise DataError(
                f"the training part of the corpus has {len(stream)} tokens, too few for one block of "
                f"{context_length} and its next token; bring more text or lower model.context_length."
            )
        self.stream, self.context_length, self.seed = stream, context_length, seed
        self.cross_documents = cross_documents
        self.blocks = max(1, (len(stream) - 1) // context_length - 1)
        self._epoch = (-1, Shuffle(1, 0), 0)

    def start(self, number: int) -> int:
        """Return where the block that comes ``number``-th in training begins in the stream."""
        epoch, place = divmod(number, self.blocks)
        if self._epoch[0] != epoch:
            spare = len(self.stream) - 1 - self.blocks * self.context_length
            offset = derive_seed(self.seed, "offset", epoch) % (spare + 1)
            self._epoch = (epoch, Shuffle(self.blocks, derive_seed(self.seed, "blocks", epoch)), offset)
        return self._epoch[2] + self._epoch[1][place] * self.context_length

    def rows(self, step: int, rank: int, ranks: int, count: int) -> TokenRows:
        """Return ``count`` rows, this rank's share of step 1, 2, ...; the ranks' shares make up the step."""
        first = ((step - 1) * ranks + rank) * count
        starts = [self.start(first + index) for index in range(count)]
        size = self.context_length
        tokens = np.stack([self.stream.read(start, start + size + 1) for start in starts])
        if self.cross_documents:
            return TokenRows(tokens)
        return TokenRows(tokens, np.stack([self._positions(start) for start in starts]))

    def _positions(self, start: int) -> Any:
        places = np.arange(self.context_length)
        begins = np.zeros_like(places)
        ends = self.stream.ends(start, start + self.context_length) - 1
        begins[ends] = ends
        return places - np.maximum.accumulate(begins)
