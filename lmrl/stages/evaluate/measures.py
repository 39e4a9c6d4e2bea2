"""From answers to the numbers of the table, each with the interval that suits it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmrl.stages.evaluate.answers import Answers, weighted_means
from lmrl.statistics import compression_ratio, cut_to_words, distinct_n
from lmrl.statistics.diversity import words
from lmrl.statistics.intervals import Interval, bootstrap_interval, bounded_interval


@dataclass(frozen=True)
class Measure:
    """A row of the table: the key under which results hold it, its label, and how its values are shown."""

    key: str
    label: str
    percent: bool = False


MEASURES = (
    Measure("kl", "KL to the reference (nats per answer)"),
    Measure("wins", "win rate", percent=True),
    Measure("length", "length (tokens)"),
    Measure("ended", "ended by itself", percent=True),
    Measure("empty", "empty answers", percent=True),
    Measure("repeated", "repeated 4-grams", percent=True),
    Measure("loop", "longest loop (words)"),
    Measure("distinct_1", "distinct words"),
    Measure("distinct_2", "distinct 2-grams"),
    Measure("compression", "compression ratio"),
    Measure("nats_per_token", "reference texts: nats per token"),
    Measure("perplexity", "reference texts: perplexity"),
    Measure("bits_per_byte", "reference texts: bits per byte"),
)
"""Measures besides rewards, in the table's order."""


def value(number: float, count: int = 0) -> Interval:
    """Return a number that has no interval."""
    return Interval(number, math.nan, math.nan, count)


def shown(interval: Interval, percent: bool = False) -> str:
    """Return an interval as the table shows it; without bounds that mean something, the number alone.

    >>> shown(Interval(0.5, 0.25, 0.75, 8), percent=True), shown(value(2.0))
    ('50.0% [25.0%, 75.0%]', '2.000')
    """
    if not math.isfinite(interval.mean):
        return "-"
    mean, low, high = (_number(number, percent) for number in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]" if math.isfinite(interval.low) and math.isfinite(interval.high) else mean


def _number(number: float, percent: bool) -> str:
    # Adding 0 turns a rounded -0.0 into 0.0.
    if percent:
        return f"{round(number, 3) + 0.0:.1%}"
    decimals = 3 if abs(number) < 100 else 1
    return f"{round(number, decimals) + 0.0:.{decimals}f}" if math.isfinite(number) else str(number)


def answer_measures(answers: Answers, seed: int) -> dict[str, Interval]:
    """Return length, endings, empty answers, repetition and KL of one column, over prompts."""
    found: dict[str, Interval] = {}
    for key, values in answers.row_measures().items():
        units = weighted_means(values, answers)
        shares = key in ("ended", "empty", "repeated")
        found[key] = bounded_interval(np.clip(units, 0, 1)) if shares else bootstrap_interval(units, seed=seed)
    if answers.kl is not None:
        found["kl"] = bootstrap_interval(weighted_means(answers.kl, answers), seed=seed)
    return found


def diversity_measures(columns: Sequence[Answers]) -> list[dict[str, Interval]]:
    """Return the diversity of each column's shown answers, all cut to the same number of words.

    There is no interval: texts that are drawn twice make a resampled set less diverse than the set is.
    """
    texts = [[answers.texts[row] for row in answers.shown] for answers in columns]
    totals = [sum(len(words(text)) for text in column) for column in texts]
    limit = min((total for total in totals if total), default=0)
    found = []
    for column in texts:
        cut = cut_to_words(column, limit)
        numbers = {"distinct_1": distinct_n(cut, 1), "distinct_2": distinct_n(cut, 2)}
        found.append({key: value(n, limit) for key, n in (numbers | {"compression": compression_ratio(cut)}).items()})
    return found


def measures_found(columns: Sequence[Mapping[str, Interval]], rewards: Sequence[str], baseline: str) -> list[Measure]:
    """Return the rows of the table: the rewards first, then whatever some column has."""
    keys = {key for column in columns for key in column}
    rows = []
    for name in rewards:
        rows.append(Measure(f"reward:{name}", f"reward {name}"))
        rows.append(Measure(f"difference:{name}", f"  minus that of {baseline}"))
    labels = {"wins": f"win rate against {baseline}"}
    rows += [Measure(m.key, labels.get(m.key, m.label), m.percent) for m in MEASURES]
    return [row for row in rows if row.key in keys]
