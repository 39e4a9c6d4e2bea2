"""From pairwise verdicts to a ranking: strengths of the Bradley-Terry model.

Where every pair has been compared, the order is that of the number of wins (Ford 1957, "Solution of a ranking problem
from binary comparisons"); where some have not, it allows for how strong each one's opponents were.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

PRIOR_GAMES = 0.5
"""Each item is taken to have drawn half a game against one of strength 0: so strengths are finite, also unbeaten."""
EQUAL = 1e-6
"""Strengths this close are equal: the optimum is found far more exactly than that."""


def strengths(count: int, outcomes: Iterable[tuple[int, int, float]]) -> tuple[float, ...]:
    """Return the strength of each of ``count`` items, as log-odds of winning.

    ``outcomes`` are (i, j, points of i): 1 for a win of i, 0 for one of j, 1/2 for a tie. Maximises
    ``sum w log sigmoid(s_i - s_j)`` over both directions of each outcome (Bradley and Terry 1952, a tie being half a
    win for each), with the prior's half-game drawn against strength 0. The optimum is unique, and equal records have
    equal strengths.
    """
    wins = np.zeros((count, count))
    for one, other, points in outcomes:
        wins[one, other] += points
        wins[other, one] += 1 - points
    games = wins + wins.T
    found = np.zeros(count)
    value = _likelihood(found, wins)
    for _ in range(200):
        chance = 1 / (1 + np.exp(found[None, :] - found[:, None]))
        against_prior = 1 / (1 + np.exp(-found))
        gradient = (wins - games * chance).sum(1) + PRIOR_GAMES * (0.5 - against_prior)
        if np.abs(gradient).max(initial=0) < 1e-12:
            break
        weight = games * chance * chance.T
        curvature = np.diag(weight.sum(1) + PRIOR_GAMES * against_prior * (1 - against_prior)) - weight
        step = np.linalg.solve(curvature, gradient)
        while (trial := _likelihood(found + step, wins)) < value - 1e-12 and np.abs(step).max() > 1e-12:
            step /= 2
        found, value = found + step, trial
    return tuple(float(strength) for strength in found)


def connected(count: int, pairs: Iterable[tuple[int, int]]) -> bool:
    """Say whether the pairs join all items: otherwise no ranking of all of them follows."""
    group = list(range(count))
    for one, other in pairs:
        old, new = group[one], group[other]
        group = [new if label == old else label for label in group]
    return len(set(group)) <= 1


def pairs_to_ask(order: list[int], limit: int = 0) -> list[tuple[int, int]]:
    """Return which pairs of items are compared: all, or ``limit`` of them.

    ``order`` holds each item once. With a limit the pairs lie on circles: each with the next, each with the next but
    one, and so on. So each item is compared about equally often, and n - 1 pairs join n items.
    """
    count = len(order)
    pairs: list[tuple[int, int]] = []
    for distance in range(1, count // 2 + 1):
        starts = range(count // 2 if 2 * distance == count else count)
        pairs += [(order[start], order[(start + distance) % count]) for start in starts]
    return pairs[:limit] if limit else pairs


def _likelihood(found: np.ndarray, wins: np.ndarray) -> float:
    differences = found[:, None] - found[None, :]
    prior = PRIOR_GAMES / 2 * (np.logaddexp(0, -found) + np.logaddexp(0, found)).sum()
    return float(-(wins * np.logaddexp(0, -differences)).sum() - prior)
