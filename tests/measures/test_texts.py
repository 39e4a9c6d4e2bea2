"""Measures of texts: numbers worked out by hand, and what must hold of any text."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.errors import SettingsError
from lmrl.statistics import (
    best_of_kl,
    best_of_weights,
    compression_ratio,
    cut_to_words,
    distinct_n,
    expected_best_of,
    is_empty,
    longest_loop,
    repeated_share,
)
from lmrl.statistics.diversity import words

TEXTS = st.lists(st.text(alphabet="ab .,\n\u00e9\u4e2d", max_size=30), min_size=1, max_size=6)


def test_distinct_by_hand():
    assert distinct_n(["the cat sat.", "The cat ran"], 1) == 5 / 7  # the cat sat . ran of seven
    assert distinct_n(["the cat sat", "the cat ran"], 2) == 3 / 4
    assert distinct_n(["a", "b"], 2) != distinct_n(["a b"], 2)  # no bigram spans two texts
    assert math.isnan(distinct_n(["", "a"], 2))
    with pytest.raises(SettingsError, match="n is 0"):
        distinct_n(["a"], 0)


@given(TEXTS, st.integers(1, 3))
def test_distinct_lies_in_its_bounds_and_falls_when_texts_are_said_twice(texts, n):
    once, twice = distinct_n(texts, n), distinct_n(texts * 2, n)
    assert math.isnan(once) or (0 < once <= 1 and twice == once / 2)


def test_texts_that_are_alike_compress_better():
    alike = ["Once there was a little girl named Mia."] * 20
    different = [f"{word} {index} {word[::-1]}" for index, word in enumerate("abcdefghijklmnopqrst")]
    assert compression_ratio(alike) > 5 > compression_ratio(different) > 0.5
    assert math.isnan(compression_ratio(["", " "])) and math.isnan(compression_ratio([]))


@given(TEXTS, st.integers(0, 40))
def test_cutting_keeps_the_first_words_and_no_more(texts, limit):
    cut = cut_to_words(texts, limit)
    every = [word for text in texts for word in words(text)]
    assert [word for text in cut for word in words(text)] == every[:limit]
    assert all(text.startswith(piece) for text, piece in zip(texts, cut, strict=False))


def test_repetition_by_hand():
    assert repeated_share("a b a b a b", 2) == pytest.approx(3 / 5)  # ab ba ab ba ab
    assert repeated_share("one two three") == 0 and repeated_share("") == 0
    assert longest_loop("ha ha ha") == 3 and longest_loop("the cat the cat the end") == 5
    assert longest_loop("a b c d a b c") == 0, "a block must have been said twice"
    assert longest_loop("x " * 40) == 40 and longest_loop("a b " * 10, longest_period=1) == 0


@given(st.lists(st.sampled_from("abc"), max_size=14), st.integers(1, 5))
def test_the_longest_loop_is_what_a_search_of_every_stretch_finds(said, longest_period):
    text = " ".join(said)
    best = 0
    for start, end in itertools.combinations(range(len(said) + 1), 2):
        stretch = said[start:end]
        for period in range(1, min(longest_period, len(stretch) // 2) + 1):
            if all(stretch[i] == stretch[i - period] for i in range(period, len(stretch))):
                best = max(best, len(stretch))
    assert longest_loop(text, longest_period) == best


def test_empty_answers():
    assert all(map(is_empty, ["", " \n\t", "\u200b", "\u00a0", "\ufeff \u200e"]))
    assert not any(map(is_empty, [".", "a", " \u4e2d"]))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_best_of_n_is_the_mean_over_all_subsets(scores, data):
    n = data.draw(st.integers(1, len(scores)))
    values = [float(value * value - 3 * index) for index, value in enumerate(scores)]
    expected = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        tied = [values[i] for i in subset if scores[i] == best]
        expected.append(sum(tied) / len(tied))
    assert sum(best_of_weights(scores, n)) == pytest.approx(1)
    assert expected_best_of(scores, values, n) == pytest.approx(sum(expected) / len(expected))


def test_best_of_one_is_the_mean_and_of_all_the_best():
    assert expected_best_of([3, 1, 2], [3, 1, 2], 1) == 2
    assert expected_best_of([3, 1, 2], [7, 8, 9], 3) == 7
    assert best_of_kl(2) == pytest.approx(math.log(2) - 0.5)
    with pytest.raises(SettingsError, match="best of 4 from 3"):
        best_of_weights([1, 2, 3], 4)
    with pytest.raises(SettingsError, match="one value for each"):
        expected_best_of([1], [1, 2], 1)


def test_importing_the_measures_is_cheap():
    modules = "lmrl.statistics, lmrl.reporting.pages, sys"
    code = f"import {modules}; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
