"""Measures of texts alone: diversity of many, repetition within one, length, empty answers.

Pure functions that need no model; importing this package needs neither torch nor transformers.
"""

from lmrl.statistics.best_of import best_of_kl, best_of_weights, expected_best_of
from lmrl.statistics.diversity import (
    compression_ratio,
    cut_to_words,
    distinct_n,
    is_empty,
    longest_loop,
    repeated_share,
)

__all__ = [
    "best_of_kl",
    "best_of_weights",
    "compression_ratio",
    "cut_to_words",
    "distinct_n",
    "expected_best_of",
    "is_empty",
    "longest_loop",
    "repeated_share",
]
