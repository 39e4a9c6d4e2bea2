"""How the scores of several reward models become one (Coste et al. 2023, section 3.2). Pure numpy."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Aggregation = Literal["mean", "worst", "uncertainty"]


def aggregate(scores: NDArray[np.float64], how: Aggregation = "mean", coefficient: float = 1.0) -> NDArray[np.float64]:
    """Return one score per text, (N,), of the members' scores, (K, N), which must be on one scale.

    mean: the members' mean. worst: their minimum, conservative without a coefficient. uncertainty: mean minus
    ``coefficient`` times the members' variance (divided by K), which punishes texts that they disagree about.
    """
    if how == "worst":
        return np.asarray(scores.min(axis=0))
    mean = np.asarray(scores.mean(axis=0))
    return mean - coefficient * scores.var(axis=0) if how == "uncertainty" else mean
