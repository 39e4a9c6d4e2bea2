"""``judge``: a language model, local or behind an endpoint, grades each response by weighted criteria."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmrl.errors import AnnotatorError, JudgeError, SettingsError
from lmrl.judges.asking import Answer, Asker, Budget, Choices, budget_of
from lmrl.judges.cache import AnswerCache
from lmrl.judges.grading import load_grading_template
from lmrl.judges.questions import as_text
from lmrl.judges.reading import Reading
from lmrl.judges.settings import AskingSettings
from lmrl.judges.verdicts import GRADE_LINE, read_grade
from lmrl.plugins.specs import Concurrency

MINIMUM = 20
"""Replies before the fraction of unreadable ones can stop a run."""
MOST_VALUES = 11
"""Grades that a local model may choose from by log-probability."""
UNREADABLE = "unreadable"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
logger = logging.getLogger(__name__)


@dataclass
class RubricItem:
    """One criterion: a question about the response, its weight and its scale."""

    name: str
    """Name in the log: letters, digits and underscores."""
    question: str
    """Criterion as the judge reads it, such as "Is every statement true?"."""
    weight: float = 1.0
    """Weight in the mean, above 0."""
    lowest: float = 1.0
    """Worst grade."""
    highest: float = 5.0
    """Best grade."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in ("score", UNREADABLE):
            raise SettingsError(
                f"reward.judge.rubric has an item named {self.name!r}; expected letters, digits and underscores, and "
                f"neither 'score' nor {UNREADABLE!r}"
            )
        if not self.question.strip():
            raise SettingsError(f"reward.judge.rubric: the question of {self.name!r} is empty; expected a criterion")
        if not 0 < self.weight < math.inf:
            raise SettingsError(
                f"reward.judge.rubric: the weight of {self.name!r} is {self.weight:g}; expected a number above 0"
            )
        if not -math.inf < self.lowest < self.highest < math.inf:
            raise SettingsError(
                f"reward.judge.rubric: the scale of {self.name!r} goes from {self.lowest:g} to {self.highest:g}; "
                "expected lowest < highest"
            )

    def choices(self) -> Choices:
        """Return the whole grades of the scale, for a local model."""
        whole = float(self.lowest).is_integer() and float(self.highest).is_integer()
        if not whole or self.highest - self.lowest >= MOST_VALUES or self.lowest < 0:
            raise SettingsError(
                f"reward.judge.rubric: the scale of {self.name!r} goes from {self.lowest:g} to {self.highest:g}; "
                f"expected at most {MOST_VALUES} whole grades from 0 up, because a local model chooses by "
                'log-probability. Set such a scale, or reward.judge.answer = "text".'
            )
        values = tuple(str(value) for value in range(int(self.lowest), int(self.highest) + 1))
        return Choices(GRADE_LINE, values, mean=True)


def _default_rubric() -> list[RubricItem]:
    return [RubricItem("quality", "How helpful, honest and harmless is the response?")]


@dataclass
class JudgeRewardSettings(AskingSettings):
    """Settings of the reward ``judge``."""

    rubric: list[RubricItem] = field(default_factory=_default_rubric)
    """Criteria, each a table [[reward.judge.rubric]] with name, question, weight = 1, lowest = 1 and highest = 5. The
    score is the weighted mean of the grades, each scaled to 0..1."""
    reference: str = ""
    """Column of the data with a reference answer, shown to the judge; empty shows none."""
    template: str = ""
    """Text file with a question of your own: {response} and {question} are required; {prompt}, {mark}, {name},
    {lowest}, {highest} and columns of the data, such as {answer}, are optional."""
    max_unreadable: float = 0.5
    """Largest fraction of replies without a grade, from 20 replies on; above it the run stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [item.name for item in self.rubric]
        if not names:
            raise SettingsError("reward.judge.rubric is empty; expected at least one table [[reward.judge.rubric]]")
        for name, count in Counter(names).items():
            if count > 1:
                raise SettingsError(f"reward.judge.rubric has {count} items named {name!r}; expected distinct names")
        if not 0 <= self.max_unreadable <= 1:
            raise SettingsError(f"reward.judge.max_unreadable is {self.max_unreadable:g}; expected 0 to 1")


class JudgeReward:
    """Weighted mean of a judge's grades in 0..1; None for a row with a reply that has no grade.

    Parts: each item's grade in 0..1, and ``unreadable``, the fraction of the row's replies without a grade. Raises
    ``JudgeError`` if the budget is spent, the judge cannot be asked, or too many replies are unreadable.
    """

    bounds = (0.0, 1.0)

    def __init__(self, settings: JudgeRewardSettings) -> None:
        self.settings = settings
        self.by_logprobs = not settings.base_url and settings.answer != "text"
        self.template = load_grading_template(settings.template, settings.reference, self.by_logprobs)
        self.reads_columns = self.template.columns
        self.budget = budget_of(settings)
        self.askers = _askers(settings, self.budget, self.by_logprobs)
        self.caches = {id(asker): AnswerCache(settings.cache, asker.identity) for asker in self.askers}
        self.concurrency: Concurrency = "thread" if settings.base_url else "none"
        self.replies, self.reasons = 0, Counter[str]()
        self._named: set[str] = set()
        self._lock = threading.Lock()

    def unreadable(self, row: Mapping[str, Any]) -> str:
        """Return why the row cannot be put into the question; empty if it can."""
        empty = [name for name in self.reads_columns if row.get(name) is None]
        return f"the column {empty[0]!r} is empty" if empty else ""

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        prompt_messages: Sequence[Sequence[Mapping[str, str]] | None] | None = None,
        **columns: Sequence[Any],
    ) -> dict[str, list[float | None]]:
        """Return scores and parts; conversations in ``prompt_messages`` replace the prompts' texts."""
        items = self.settings.rubric
        shown = [
            as_text(messages) if messages else prompt
            for prompt, messages in zip(prompts, prompt_messages or [None] * len(prompts), strict=True)
        ]
        asked = [self._questions(place, shown, responses, columns) for place in range(len(responses))]
        grades: list[list[float | None]] = []
        for asker, item, questions in zip(self.askers, items, zip(*asked, strict=True), strict=False):
            answers = self._answers(asker, list(dict.fromkeys(questions)))
            read = {question: self._read(answer, item) for question, answer in answers.items()}
            grades.append([read[question] for question in questions])
        self._check_unreadable()
        weights = [item.weight for item in items]
        scores: list[float | None] = []
        missing: list[float | None] = []
        for row in zip(*grades, strict=True):
            known = [grade for grade in row if grade is not None]
            whole = len(known) == len(row)
            scores.append(
                math.fsum(w * g for w, g in zip(weights, known, strict=True)) / sum(weights) if whole else None
            )
            missing.append(1 - len(known) / len(row))
        parts = {item.name: column for item, column in zip(items, grades, strict=True)}
        return {"score": scores, **parts, UNREADABLE: missing}

    def _questions(
        self, place: int, shown: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[str]:
        values = {name: columns[name][place] for name in self.reads_columns}
        values |= {"prompt": shown[place], "response": responses[place]}
        return [
            self.template.fill(
                {
                    **values,
                    "name": item.name,
                    "question": item.question,
                    "lowest": item.lowest,
                    "highest": item.highest,
                }
            )
            for item in self.settings.rubric
        ]

    def _answers(self, asker: Asker, questions: Sequence[str]) -> dict[str, Answer]:
        """Return the answer to each question, from the cache where it is known."""
        cache = self.caches[id(asker)]
        found = cache.get_many(questions)
        left = [question for question in questions if question not in found]
        try:
            for place, answer in asker.ask(left, lambda: False):
                if answer.text is not None:
                    cache.put(left[place], answer)
                found[left[place]] = answer
        except AnnotatorError as error:
            raise JudgeError(f"reward 'judge': {error}") from error
        if len(found) < len(questions):
            raise JudgeError(
                f"reward 'judge': its budget is spent: {self.budget.spent}, after {self.budget.calls} requests and "
                f"{self.budget.tokens} tokens; {len(questions) - len(found)} of {len(questions)} questions are left. "
                "Replies are in the cache. Resume the run for another budget of the same size, or raise "
                "reward.judge.max_calls, max_tokens or max_cost."
            )
        return found

    def _read(self, answer: Answer, item: RubricItem) -> float | None:
        """Return a reply's grade in 0..1, and count it."""
        if answer.text is None:
            found = Reading[float](None, f"no reply: {answer.failure}")
        elif answer.unreadable:
            found = Reading[float](None, answer.unreadable)
        else:
            found = read_grade(answer.text, item.lowest, item.highest)
        with self._lock:
            self.replies += 1
            if found.value is None:
                self.reasons[found.reason] += 1
        return None if found.value is None else (found.value - item.lowest) / (item.highest - item.lowest)

    def _check_unreadable(self) -> None:
        with self._lock:
            replies, reasons = self.replies, self.reasons.copy()
            new = [reason for reason in reasons if reason.partition(":")[0] not in self._named]
            self._named |= {reason.partition(":")[0] for reason in new}
        count, limit = reasons.total(), self.settings.max_unreadable
        for reason in new:  # each kind once; the log has the fraction per update
            logger.warning(
                "reward 'judge': %s of %s replies have no grade so far (%s); their rows have no score, and "
                "reward_unreadable in the log is the fraction of such replies",
                reasons[reason],
                replies,
                reason,
            )
        if replies >= MINIMUM and count > limit * replies:
            named = "; ".join(f"{number} times {reason}" for reason, number in reasons.most_common(3))
            raise JudgeError(
                f"reward 'judge': {count} of {replies} replies have no grade, which is above "
                f'reward.judge.max_unreadable = {limit:g} ({named}). Expected replies that end with "{GRADE_LINE} N". '
                "Choose a model that keeps to the form, raise reward.judge.max_answer_tokens, or correct the template."
            )

    def __reduce__(self) -> Any:
        return JudgeReward, (self.settings,)

    def __deepcopy__(self, memo: dict[int, Any]) -> JudgeReward:
        return self  # models, budget and cache are shared by copies of an environment


def _askers(settings: JudgeRewardSettings, budget: Budget, by_logprobs: bool) -> list[Asker]:
    """Return an asker for each rubric item; they share one model, and equal scales share one asker."""
    if settings.base_url:
        from lmrl.judges.endpoint import EndpointAsker

        return [EndpointAsker(settings, budget)] * len(settings.rubric)
    from lmrl.judges.local import LocalAsker

    made: dict[Choices | None, LocalAsker] = {}
    for item in settings.rubric:
        choices = item.choices() if by_logprobs else None
        if choices not in made:
            made[choices] = LocalAsker(settings, budget, choices, next(iter(made.values()), None))
    return [made[item.choices() if by_logprobs else None] for item in settings.rubric]
