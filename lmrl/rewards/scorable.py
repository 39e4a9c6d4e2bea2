"""Check of the data against rewards before anything is sampled: missing columns, and rows with unreadable answers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from lmrl.errors import RewardError
from lmrl.rewards.function import RewardFunction

logger = logging.getLogger(__name__)
OnUnreadable = Literal["skip", "error"]
SHOWN = 5
"""Rows that a message names."""


def scorable_rows(
    rewards: Iterable[RewardFunction],
    columns: Mapping[str, Sequence[Any]],
    origins: Sequence[str],
    on_unreadable: OnUnreadable = "skip",
) -> list[int]:
    """Return the numbers of the rows that every reward can score; the others are counted and named in a warning.

    ``origins`` names each row for a person, such as "math.jsonl, row 17". Raises ``RewardError`` if a reward needs a
    column that is missing, if no row is left, and for ``"error"`` if a row is unreadable.
    """
    count = len(origins)
    unreadable: dict[int, str] = {}
    for reward in rewards:
        reward.check_columns(columns)
        unreadable = {**reward.unreadable(columns, count), **unreadable}
    if not unreadable:
        return list(range(count))
    rows = sorted(unreadable)
    named = "; ".join(f"{origins[row]}: {unreadable[row]}" for row in rows[:SHOWN])
    more = f"; and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    found = f"{len(rows)} of {count} rows have no answer that the reward can read: {named}{more}."
    if on_unreadable == "error" or len(rows) == count:
        raise RewardError(f"{found} Correct or remove these rows, or choose a reward that reads such answers.")
    logger.warning("%s These rows are skipped.", found)
    return [row for row in range(count) if row not in unreadable]
