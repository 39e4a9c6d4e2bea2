"""Verdicts on several completions, by one or several annotators in one row, as one ranking.

A verdict says which completion is best (0: a tie), or has a number for every pair in the order 1-2, 1-3, ..., 2-3
(1: the first is better, 2: the second, 0: neither). The majority decides each pair; the order is by the pairs won.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from lmrl.data.layouts.readers import asked_columns, read_answer, read_asked
from lmrl.data.layouts.reading import Answered, Found, Reader, Skip, cell, is_missing, list_of, number, structured
from lmrl.data.records import dense_ranks

TIES = ("tie", "tied", "both", "neither", "none", "equal", "same", "draw")
NAMED = re.compile(r"(?:(?:answer|response|output|completion|model|assistant|option)[ _-]*)?([a-z]|\d+)")
Pair = tuple[int, int]


def voted(asked: str) -> Reader:
    """Return a reader of completions with ``preferences``, one verdict or a list of several annotators' verdicts."""

    def read(row: Mapping[str, Any]) -> Found:
        prompt = read_asked(row, asked)
        given = list_of(cell(row, "completions"), "completions")
        completions = tuple(read_answer(item, prompt, "completion") for item in given)
        pairs = list(combinations(range(len(completions)), 2))
        verdicts = [
            _outcomes(item, pairs, len(completions)) for item in _verdicts(cell(row, "preferences"), len(pairs))
        ]
        ranks, note = _majority(verdicts, pairs, len(completions))
        used = (*asked_columns(asked), "completions", "preferences")
        yield Answered(prompt, completions, ranks, used=used, note=note)

    return read


def _verdicts(value: object, pairs: int) -> list[Any]:
    """Return one verdict per annotator."""
    value = structured(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value]
    # With two completions a list holds annotators; with more, its numbers are one annotator's, pair by pair.
    if pairs > 1 and not any(isinstance(structured(item), list) for item in value):
        return [list(value)]
    found = [structured(item) for item in value if not is_missing(item)]
    if not found:
        raise Skip("no preferences")
    return found


def _outcomes(verdict: object, pairs: Sequence[Pair], count: int) -> list[int]:
    """Return for each pair 1 (the first is better), -1 (the second) or 0."""
    if isinstance(verdict, list):
        if len(verdict) != len(pairs):
            raise Skip("not as many preferences as pairs", f"{len(verdict)} preferences, {len(pairs)} pairs")
        return [(0, 1, -1)[_choice(item, 2)] for item in verdict]
    best = _choice(verdict, count) - 1
    return [int(first == best) - int(second == best) for first, second in pairs]


def _choice(value: object, count: int) -> int:
    """Return the number of the completion that a verdict prefers, 0 for a tie."""
    if isinstance(value, str) and number(value) is None:
        text = value.strip().lower()
        named = NAMED.fullmatch(text)
        if text in TIES:
            return 0
        value = None if named is None else named[1]
        if isinstance(value, str) and value.isalpha():
            value = "abcdefghijklmnopqrstuvwxyz".index(value) + 1
    found = None if isinstance(value, bool) else number(value)
    if found is None or found != int(found) or not 0 <= found <= count:
        raise Skip("a preference that names none of the completions and no tie", repr(value)[:40])
    return int(found)


def _majority(verdicts: Sequence[Sequence[int]], pairs: Sequence[Pair], count: int) -> tuple[tuple[int, ...], str]:
    """Return the ranks, and a note on annotators who disagree."""
    won = [0.0] * count
    for place, (first, second) in enumerate(pairs):
        balance = sum(outcome[place] for outcome in verdicts)
        won[first] += 0.5 + 0.5 * ((balance > 0) - (balance < 0))
        won[second] += 0.5 - 0.5 * ((balance > 0) - (balance < 0))
    ranks = dense_ranks(tuple(won), "highest")
    if len({tuple(outcome) for outcome in verdicts}) > 1:
        if len(set(ranks)) == 1:
            raise Skip("annotators who disagree without a majority")
        return ranks, "the annotators disagree, and the majority decides"
    if any(
        outcome[place] * (won[first] - won[second]) < 0
        for outcome in verdicts
        for place, (first, second) in enumerate(pairs)
    ):
        return ranks, "some preferences form a circle, and the number of pairs won decides"
    return ranks, ""
