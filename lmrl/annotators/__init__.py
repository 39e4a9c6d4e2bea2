"""Preference data: annotators that rank completions, how well they agree, and the files that rankings are kept in.

Importing this package needs neither torch nor transformers.
"""

from lmrl.annotators.annotators import Annotator, AnnotatorSettings, Comparison, Judgement, build_annotator
from lmrl.annotators.ranks import dense_ranks, ranked_pairs

__all__ = [
    "Annotator",
    "AnnotatorSettings",
    "Comparison",
    "Judgement",
    "build_annotator",
    "dense_ranks",
    "ranked_pairs",
]
