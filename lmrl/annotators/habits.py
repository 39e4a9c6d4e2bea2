"""An annotator's habits: how often it ties, and whether it prefers what is longer or what stands first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lmrl.annotators.agreement import plain_numbers, share_interval
from lmrl.annotators.annotators import Judgement
from lmrl.annotators.ranks import all_tied, ranked_pairs
from lmrl.judges.verdicts import FIRST, SECOND, TIE
from lmrl.statistics.intervals import Interval

_SWAPPED = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}


@dataclass(frozen=True)
class Habits:
    """Tendencies of an annotator's judgements.

    ``tied_pairs``: share of the pairs that tie. ``longer_preferred``: share of the pairs with a better completion, of
    different lengths in characters, where it is the longer one. Of judges only: ``consistency``, the share of pairs
    asked in both orders with the same answer in both (Zheng et al. 2023), and ``first_preferred``, the share of
    answers that name one of the two where it is the one that stands first: without a habit 0.5.
    """

    judged: int
    all_tied: int
    pairs: int
    tied_pairs: Interval
    longer_preferred: Interval
    consistency: Interval | None = None
    first_preferred: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        plain: dict[str, Any] = plain_numbers(asdict(self))
        return plain


def find_habits(judgements: Mapping[int, Judgement], completions: Sequence[Sequence[str]], seed: int = 0) -> Habits:
    """Return the habits in judgements, by the number of the comparison whose ``completions`` they rank."""
    rows = []
    for index, judgement in sorted(judgements.items()):
        lengths = [len(text) for text in completions[index]]
        pairs = ranked_pairs(judgement.ranks)
        unequal = [(better, worse) for better, worse in pairs if lengths[better] != lengths[worse]]
        longer = sum(lengths[better] > lengths[worse] for better, worse in unequal)
        number = len(lengths) * (len(lengths) - 1) // 2
        rows.append([number - len(pairs), number, longer, len(unequal), *_positions(judgement)])
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 8)
    asked = table[:, 5].sum() > 0
    named = table[:, 7].sum() > 0
    return Habits(
        judged=len(rows),
        all_tied=sum(all_tied(judgement.ranks) for judgement in judgements.values()),
        pairs=int(table[:, 1].sum() - table[:, 0].sum()),
        tied_pairs=share_interval(table[:, 0], table[:, 1], seed),
        longer_preferred=share_interval(table[:, 2], table[:, 3], seed),
        consistency=share_interval(table[:, 4], table[:, 5], seed) if asked else None,
        first_preferred=share_interval(table[:, 6], table[:, 7], seed) if named else None,
    )


def _positions(judgement: Judgement) -> tuple[int, int, int, int]:
    """Return (alike, asked in both orders, first named, one named) of a judge's verdicts; zeros of anyone else."""
    verdicts = {(first, second): verdict for first, second, verdict in judgement.details.get("verdicts", [])}
    both = [
        (verdict, verdicts[second, first])
        for (first, second), verdict in verdicts.items()
        if first < second and verdict and verdicts.get((second, first))
    ]
    named = [verdict for verdict in verdicts.values() if verdict in (FIRST, SECOND)]
    return sum(_SWAPPED[one] == other for one, other in both), len(both), named.count(FIRST), len(named)
