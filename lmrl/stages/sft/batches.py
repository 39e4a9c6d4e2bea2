"""Rows of tokens put side by side for one forward pass: padded and sorted by length, or packed without leaking.

A packed row holds several examples one after the other; positions begin anew with each, and from that transformers
makes an attention mask that keeps them apart. ``can_pack`` tries whether a model does. Each example is computed as if
it were alone either way, so the choice changes no loss and no gradient, only the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmrl.models.head import head_is_linear
from lmrl.models.layouts.padded import general_states, linear_states

PROBE_LENGTHS = (5, 2, 7, 1)
LEAST_SHARE = 0.75
"""A padded row fills at least this share of its microbatch's width: on a CPU, padding costs what tokens cost."""


@dataclass(frozen=True)
class Row:
    """An example as token ids; ``trained`` says of each id whether the model learns to say it."""

    ids: Sequence[int]
    trained: Sequence[bool]

    @property
    def count(self) -> int:
        """The ids with a loss. Nothing stands before the first one to predict it from."""
        return sum(self.trained[1:])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Microbatch:
    """Rows for one forward pass.

    ``ids`` is (R, L) int64, ``positions`` (R, L) int64 in packed rows and None in padded ones; ``predicts`` is the
    (R, L) bool mask of positions whose output predicts a trained id, ``targets`` (N,) those ids in row-major order.
    ``owners`` (N,) is the place of each target's example among the rows that the batch was made of.
    """

    ids: Tensor
    positions: Tensor | None
    predicts: Tensor
    targets: Tensor
    owners: Tensor

    @property
    def count(self) -> int:
        """Tokens with a loss."""
        return len(self.targets)

    @property
    def tokens(self) -> int:
        """Positions that a forward pass computes, padding included."""
        return self.ids.numel()


def make_microbatches(rows: Sequence[Row], budget: int, packed: bool, width: int = 0) -> list[Microbatch]:
    """Return the rows in microbatches of at most ``budget`` positions (more where one row alone is longer).

    ``packed`` puts several examples into rows of ``width`` positions, or of the longest example's length if that is
    more; else rows are sorted by length and padded to the longest of their microbatch.
    """
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    if not order:
        return []
    bins = _fill(rows, order, max(width, len(rows[order[0]]))) if packed else [[place] for place in order]
    groups = _group(rows, bins, budget, least_share=0.0 if packed else LEAST_SHARE)
    return [_join(rows, group, packed) for group in groups]


def _fill(rows: Sequence[Row], order: Sequence[int], width: int) -> list[list[int]]:
    """Put each row, the longest first, into the first bin with room (first fit, decreasing)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for place in order:
        length = len(rows[place])
        at = next((at for at, left in enumerate(room) if left >= length), len(bins))
        if at == len(bins):
            bins.append([])
            room.append(width)
        bins[at].append(place)
        room[at] -= length
    return bins


def _group(
    rows: Sequence[Row], bins: Sequence[list[int]], budget: int, least_share: float
) -> Iterator[list[list[int]]]:
    """Yield bins for one microbatch after the other; each is padded to its longest bin."""
    group: list[list[int]] = []
    longest = 0
    for one in bins:
        length = sum(len(rows[place]) for place in one)
        if group and (max(longest, length) * (len(group) + 1) > budget or length < least_share * longest):
            yield group
            group, longest = [], 0
        group.append(one)
        longest = max(longest, length)
    yield group


def _join(rows: Sequence[Row], bins: Sequence[Sequence[int]], packed: bool) -> Microbatch:
    width = max(sum(len(rows[place]) for place in one) for one in bins)
    ids = torch.zeros(len(bins), width, dtype=torch.long)
    positions = torch.zeros(len(bins), width, dtype=torch.long)
    predicts = torch.zeros(len(bins), width, dtype=torch.bool)
    targets: list[int] = []
    owners: list[int] = []
    for at, one in enumerate(bins):
        start = 0
        for place in one:
            row = rows[place]
            end = start + len(row)
            ids[at, start:end] = torch.tensor(row.ids)
            positions[at, start:end] = torch.arange(len(row))
            predicts[at, start : end - 1] = torch.tensor(row.trained[1:], dtype=torch.bool)
            said = [token for token, trained in zip(row.ids[1:], row.trained[1:], strict=True) if trained]
            targets += said
            owners += [place] * len(said)
            start = end
        positions[at, start:] = torch.arange(width - start)  # padding is an example of its own
    said_ids, said_by = torch.tensor(targets, dtype=torch.long), torch.tensor(owners, dtype=torch.long)
    return Microbatch(ids, positions if packed else None, predicts, said_ids, said_by)


class AnswerModel(nn.Module):
    """A causal language model asked for the log-probabilities of trained tokens; what a data-parallel wrapper wraps.

    The LM head runs only on positions that predict one, where the family allows it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._states = linear_states if head_is_linear(model) else general_states

    def forward(
        self, ids: Tensor, positions: Tensor | None, predicts: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return for each target its negative log-probability in nats and whether it was the likeliest, both (N,)."""
        given = {"input_ids": ids} if positions is None else {"input_ids": ids, "position_ids": positions}
        _, logits = self._states(predicts, given, self.model, True, False)
        assert logits is not None
        logits = logits.float()
        return functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


@torch.no_grad()
def can_pack(model: Any) -> bool:
    """Say whether the model keeps packed examples apart, by trying it on a few tokens.

    Its logits for packed examples must be those of each alone, far closer than they are without positions. Recurrent
    families and some with relative positions (ALiBi) see across the border; their rows are padded.
    """
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary, (1, length), generator=generator).to(device) for length in PROBE_LENGTHS]
    joint = torch.cat(rows, 1).repeat(2, 1)
    positions = torch.cat([torch.arange(length, device=device) for length in PROBE_LENGTHS])[None].repeat(2, 1)
    training = model.training
    model.eval()
    try:
        alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], 1)
        packed = model(input_ids=joint, position_ids=positions, use_cache=False).logits
        leaking = model(input_ids=joint, use_cache=False).logits
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    finally:
        model.train(training)
    return bool((packed - alone).abs().max() < 0.01 * (leaking - alone).abs().max())
