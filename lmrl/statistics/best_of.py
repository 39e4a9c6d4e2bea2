"""Best-of-N: what answers would be worth if N were drawn and the one that a score likes best were kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmrl.errors import SettingsError


def best_of_weights(scores: Sequence[float], n: int) -> list[float]:
    """Return, for each of the samples, the probability that it is the best of ``n`` drawn from them.

    Without replacement: the sample with the i-th lowest score is the best of C(i - 1, n - 1) of the C(k, n) subsets
    (Nakano et al. 2021, "WebGPT", and Gao, Schulman and Hilton 2023, "Scaling Laws for Reward Model
    Overoptimization"). Samples of one score share their chances. The weights sum to 1.

    >>> best_of_weights([0.1, 0.3, 0.2], 2)
    [0.0, 0.6666666666666666, 0.3333333333333333]
    """
    count = len(scores)
    if not 1 <= n <= count:
        raise SettingsError(f"best of {n} from {count} samples; expected a number from 1 to the samples drawn")
    order = sorted(range(count), key=lambda index: scores[index])
    chances = [math.comb(place, n - 1) / math.comb(count, n) for place in range(count)]
    weights = [0.0] * count
    start = 0
    while start < count:
        end = start
        while end < count and scores[order[end]] == scores[order[start]]:
            end += 1
        share = sum(chances[start:end]) / (end - start)
        for place in range(start, end):
            weights[order[place]] = share
        start = end
    return weights


def expected_best_of(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Return the expected value of the best of ``n``, chosen by the scores: unbiased, from all samples drawn.

    With ``values`` the scores themselves it is the expected highest score.

    >>> expected_best_of([1.0, 2.0], [10.0, 20.0], 1)
    15.0
    """
    if len(values) != len(scores):
        raise SettingsError(f"{len(scores)} scores and {len(values)} values; expected one value for each score")
    return math.fsum(weight * value for weight, value in zip(best_of_weights(scores, n), values, strict=True))


def best_of_kl(n: int) -> float:
    """Return log n - (n - 1) / n nats: how far best-of-n lies from the model that is sampled, at the most.

    It is exact where no two answers are alike (Stiennon et al. 2020; Beirami et al. 2024 show that it is a bound).

    >>> best_of_kl(1)
    0.0
    """
    return math.log(n) - (n - 1) / n
