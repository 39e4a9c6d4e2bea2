"""Ranks: 0 is best, ties share a rank, no rank is left out ("dense"). Pure functions without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

PairPolicy = Literal["all", "best_worst", "adjacent"]


def dense_ranks(scores: Sequence[float], tolerance: float = 0.0) -> tuple[int, ...]:
    """Return the ranks that scores stand for; the highest score has rank 0.

    A score ties with the best of its group if it lies at most ``tolerance`` below it: so no chain of small steps joins
    scores that lie far apart.

    >>> dense_ranks([0.1, 2.0, 2.0, -1.0])
    (1, 0, 0, 2)
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    ranks = [0] * len(scores)
    rank, best = -1, 0.0
    for index in order:
        if rank < 0 or best - scores[index] > tolerance:
            rank, best = rank + 1, scores[index]
        ranks[index] = rank
    return tuple(ranks)


def compact_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """Return the same order with dense ranks from 0.

    >>> compact_ranks([7, 1, 1])
    (1, 0, 0)
    """
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return tuple(places[rank] for rank in ranks)


def all_tied(ranks: Sequence[int]) -> bool:
    """Say whether nothing is better than anything else."""
    return len(set(ranks)) < 2


def ranked_pairs(ranks: Sequence[int], policy: PairPolicy = "all") -> list[tuple[int, int]]:
    """Return (better, worse) index pairs, ties left out.

    ``all``: every pair. ``best_worst``: the first of the best with the last of the worst, at most one pair.
    ``adjacent``: every pair whose ranks are next to each other.

    >>> ranked_pairs([1, 0, 2], "adjacent")
    [(0, 2), (1, 0)]
    """
    if policy == "best_worst":
        return [] if all_tied(ranks) else [(ranks.index(min(ranks)), _last(ranks, max(ranks)))]
    dense = compact_ranks(ranks)
    indices = range(len(dense))
    pairs = [(better, worse) for better in indices for worse in indices if dense[better] < dense[worse]]
    if policy == "adjacent":
        return [(better, worse) for better, worse in pairs if dense[worse] - dense[better] == 1]
    return pairs


def _last(ranks: Sequence[int], rank: int) -> int:
    return max(index for index, value in enumerate(ranks) if value == rank)
