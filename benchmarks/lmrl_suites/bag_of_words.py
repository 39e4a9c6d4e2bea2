"""The baseline that reward models are put beside: a linear function of how often words come, fitted to pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmrl.data import Ranking
from lmrl.data.layouts.conversations import opening
from lmrl.stages.reward.data import RankedRows
from lmrl.stages.reward.measures import Numbers

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Inverse strengths of the squared penalty, of which cross-validation over prompts chooses one."""
USUAL = 0.03
FOLDS = 5
WORDS = r"(?u)\b\w+\b|[?!]"


def bag_of_words(training: Sequence[Ranking], held_out: Sequence[RankedRows]) -> list[Numbers]:
    """Return scores of the held-out answers by logistic regression on differences of log word counts.

    Words that one training text alone has are left out; where no others are, all scores are 0. With the answers to one
    prompt alone there is nothing to choose the penalty by, and it is ``USUAL``. Needs scikit-learn.
    """
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score

    counter = CountVectorizer(min_df=2, token_pattern=WORDS)
    try:
        counter.fit(text for ranking in training for text in texts_of(ranking))
    except ValueError:  # no word comes twice
        return [np.zeros(len(item.ranks)) for item in held_out]
    differences, groups = [], []
    for ranking in training:
        counts = counter.transform(texts_of(ranking)).log1p().tocsr()
        for better, worse in ranking.pairs():
            differences.append(counts[better] - counts[worse])
            groups.append(opening(ranking.prompt))
    rows = vstack(differences).tocsr()
    # Each pair both ways round, so that classes are balanced and no intercept is needed.
    rows, labels = vstack([rows, -rows]).tocsr(), np.repeat([1, 0], rows.shape[0])
    fits = {penalty: LogisticRegression(C=penalty, fit_intercept=False, max_iter=1000) for penalty in PENALTIES}
    chosen = USUAL
    if len(set(groups)) > 1:
        folds = GroupKFold(min(FOLDS, len(set(groups))))
        quality = {
            penalty: cross_val_score(fit, rows, labels, groups=groups * 2, cv=folds, scoring="neg_log_loss").mean()
            for penalty, fit in fits.items()
        }
        chosen = max(quality, key=quality.__getitem__)
    best = fits[chosen].fit(rows, labels)
    return [counter.transform(texts_of(item.ranking)).log1p() @ best.coef_[0] for item in held_out]


def texts_of(ranking: Ranking) -> list[str]:
    """Return the answers as texts; several turns as one."""
    return [
        answer if isinstance(answer, str) else "\n".join(str(turn["content"]) for turn in answer)
        for answer in ranking.completions
    ]
