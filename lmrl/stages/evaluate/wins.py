"""Win rates: whose answer is the better one, prompt by prompt, ties counting half."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lmrl.annotators.annotators import Annotator, Comparison
from lmrl.stages.asking import transcript
from lmrl.stages.evaluate.answers import Answers
from lmrl.stages.evaluate.prompts import Questions
from lmrl.statistics import is_empty
from lmrl.statistics.intervals import Interval, bounded_interval, group_means


@dataclass(frozen=True)
class WinRate:
    """One column's answers against the baseline's: counts of comparisons, and the rate with its interval over prompts.

    ``by_empty`` of the comparisons were decided because one answer was empty (or tied, because both were);
    ``unanswered`` ones have no verdict of the annotator, or no reward, and are in no count.
    """

    rate: Interval
    wins: int
    ties: int
    losses: int
    by_empty: int
    unanswered: int

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        counts = asdict(self)
        del counts["rate"]
        return counts


def win_rate(
    answers: Answers,
    baseline: Answers,
    questions: Questions,
    annotator: Annotator | None = None,
    reward: str = "",
    tolerance: float = 0.0,
) -> WinRate:
    """Compare the shown answers of a column with those of the baseline, the first sample with the first and so on.

    ``annotator`` is asked, or without one the ``reward`` that both columns have decides. An empty answer loses to one
    that is not and ties with another empty one, and nobody is asked. The interval is that of shares, over prompts.
    """
    pairs = _pairs(answers, baseline)
    scores: list[float | None] = [None] * len(pairs)
    asked: list[int] = []
    for place, (mine, other) in enumerate(pairs):
        empty, other_empty = is_empty(answers.texts[mine]), is_empty(baseline.texts[other])
        if empty or other_empty:
            scores[place] = 0.5 + 0.5 * (int(other_empty) - int(empty))
        elif annotator is not None:
            asked.append(place)
        else:
            one, two = answers.rewards[reward][mine], baseline.rewards[reward][other]
            if one is not None and two is not None:
                scores[place] = 0.5 if abs(one - two) <= tolerance else float(one > two)
    by_empty = sum(is_empty(answers.texts[mine]) or is_empty(baseline.texts[other]) for mine, other in pairs)
    if annotator is not None and asked:
        comparisons = [_comparison(answers, baseline, questions, *pairs[place]) for place in asked]
        for place, judgement in zip(asked, annotator.judge(comparisons), strict=True):
            if judgement is not None:
                mine_rank, other_rank = judgement.ranks
                scores[place] = 0.5 + 0.5 * ((other_rank > mine_rank) - (other_rank < mine_rank))
    known = [(answers.groups[mine], score) for (mine, _), score in zip(pairs, scores, strict=True) if score is not None]
    units = group_means([score for _, score in known], [group for group, _ in known])
    return WinRate(
        bounded_interval(units),
        wins=sum(score == 1 for _, score in known),
        ties=sum(score == 0.5 for _, score in known),
        losses=sum(score == 0 for _, score in known),
        by_empty=by_empty,
        unanswered=len(pairs) - len(known),
    )


def _pairs(answers: Answers, baseline: Answers) -> list[tuple[int, int]]:
    """Return rows of both that answer the same prompt; a column with fewer samples of it decides how many."""
    by_group: dict[int, list[int]] = {}
    for row in baseline.shown:
        by_group.setdefault(baseline.groups[row], []).append(row)
    waiting = {group: iter(rows) for group, rows in by_group.items()}
    pairs = []
    for row in answers.shown:
        other = next(waiting.get(answers.groups[row], iter(())), None)
        if other is not None:
            pairs.append((row, other))
    return pairs


def _comparison(answers: Answers, baseline: Answers, questions: Questions, mine: int, other: int) -> Comparison:
    question = questions.items[answers.groups[mine]]
    text = question.prompt if isinstance(question.prompt, str) else transcript(question.prompt)
    return Comparison(question.prompt, text, (answers.texts[mine], baseline.texts[other]), question.columns)
