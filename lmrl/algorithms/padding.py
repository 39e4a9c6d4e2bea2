"""Rows of token ids of different lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def pad_rows(
    rows: Sequence[Sequence[int]],
    side: Literal["left", "right"] = "right",
    width: int = 0,
    fill: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return rows of ids as (B, L) int64, and their lengths (B,).

    ``fill`` is the padding on that ``side`` of each row; L is the longest row's length, or ``width`` if that is larger.
    """
    lengths = [len(row) for row in rows]
    width = max(width, *lengths)
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    for place, row in enumerate(rows):
        first = width - len(row) if side == "left" else 0  # padding on the left: ids at the end
        ids[place, first : first + len(row)] = torch.as_tensor(row, dtype=torch.long)
    return ids.to(device), torch.tensor(lengths, device=device)
