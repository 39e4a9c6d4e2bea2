"""Best of n on an exact problem: the distribution of the best of n answers of the reference, without drawing any."""

from __future__ import annotations

from torch import Tensor

from lmrl.testing.exact import ExactMeasures, ExactProblem

BEST_OF = "best_of_n"
"""Name of its row."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""The n that are tried; the one with the best objective is reported."""


def best_of_log_probabilities(problem: ExactProblem, n: int) -> Tensor:
    """Return the log-probabilities of the best of ``n`` answers, (N,), by the true reward; ties are shared out.

    With F(y) the reference's mass of rewards up to that of y, and F-(y) below it, the best has y's reward with
    probability F^n - F-^n (Beirami et al. 2024, lemma 1); answers of one reward share that as the reference has them.
    """
    count = problem.responses_per_prompt
    mass = problem.reference_table.log_probabilities.double().exp().view(-1, count)
    rewards = problem.rewards.view(-1, count)
    below = (mass[:, None, :] * (rewards[:, None, :] < rewards[:, :, None])).sum(-1)
    level = (mass[:, None, :] * (rewards[:, None, :] == rewards[:, :, None])).sum(-1)
    best = ((below + level) ** n - below**n) * mass / level
    return (best / best.sum(1, keepdim=True)).log().view(-1)


def best_of_measures(problem: ExactProblem, beta: float) -> tuple[int, ExactMeasures]:
    """Return the n of ``SIZES`` whose objective is the highest, and where it stands."""
    found = [(n, problem.measure_of(best_of_log_probabilities(problem, n), beta)) for n in SIZES]
    return max(found, key=lambda pair: pair[1].objective)
