"""Cutting trajectories into forward passes of at most so many tokens, for padded and for packed rows.

Both functions return index tensors that together hold every trajectory once. A single trajectory may exceed the budget.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmrl.algorithms.rows import split_by_length
from lmrl.algorithms.sequences import Sequences


def split_padded(inputs: Sequences, token_budget: int) -> list[Tensor]:
    """Return pieces of trajectories of like length: (sequences x longest sequence) is at most the budget."""
    if inputs.count == len(inputs.lengths):
        return split_by_length(inputs.lengths, token_budget)
    longest = inputs.lengths.new_zeros(inputs.count).scatter_reduce(0, inputs.trajectory, inputs.lengths, "amax")
    return split_by_length(longest, token_budget, inputs.sequence_counts)


def split_packed(inputs: Sequences, token_budget: int) -> list[Tensor]:
    """Return pieces of at most so many tokens, where equal prompts count once.

    Trajectories with one prompt stay together where they fit into a piece, and are cut where they do not. Reads the
    prompts on the host.
    """
    context_lengths = inputs.context_lengths
    ids, trajectory = inputs.ids.tolist(), inputs.trajectory.tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    costs: list[int] = []
    """Tokens of each trajectory without the context that its first sequence may share."""
    for place, (length, context) in enumerate(zip(inputs.lengths.tolist(), context_lengths.tolist(), strict=True)):
        if trajectory[place] < len(costs):
            costs[-1] += length
        else:
            groups.setdefault(tuple(ids[place][:context]), []).append(len(costs))
            costs.append(length - context)
    pieces: list[list[int]] = []
    left = 0
    for prompt, rows in groups.items():
        whole = len(prompt) + sum(costs[row] for row in rows)
        joined = bool(pieces) and whole <= left
        if joined:
            left -= len(prompt)
        for row in rows:
            if not joined or costs[row] > left:
                pieces.append([])
                left, joined = token_budget - len(prompt), True
            pieces[-1].append(row)
            left -= costs[row]
    return [torch.tensor(piece, device=inputs.ids.device) for piece in pieces]
