"""Judges: a language model is asked, pair by pair, which answer is better.

Each pair is asked in both orders, and answers that contradict each other make a tie (Zheng et al. 2023, "Judging
LLM-as-a-judge with MT-Bench and Chatbot Arena", section 3.4: judges prefer a position). Rankings of more than two come
from the pairs by Bradley-Terry strengths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lmrl.annotators.annotators import Comparison, Judgement, StreamingAnnotator, Unanswered, judge_all
from lmrl.annotators.bradley_terry import EQUAL, connected, pairs_to_ask, strengths
from lmrl.annotators.ranks import dense_ranks
from lmrl.errors import SettingsError
from lmrl.judges.asking import Answer, Asker, Budget, Choices, budget_of
from lmrl.judges.cache import AnswerCache
from lmrl.judges.questions import VERDICT_LINE, VERDICTS, Template, as_text, load_template
from lmrl.judges.reading import Reading
from lmrl.judges.settings import JudgeSettings
from lmrl.judges.verdicts import FIRST, SECOND, TIE

POINTS = {FIRST: 1.0, SECOND: 0.0, TIE: 0.5}
"""Points of the answer that stands first, by verdict."""
COUNTS = ("questions", "cached", "calls", "retries", "tokens", "unreadable", "failed")


@dataclass
class _Pending:
    """A comparison whose questions are being answered: verdicts by (first, second), None until known."""

    index: int
    count: int
    verdicts: dict[tuple[int, int], str | None] = field(default_factory=dict)
    failed: bool = False

    @property
    def done(self) -> bool:
        return all(verdict is not None for verdict in self.verdicts.values())


class JudgeAnnotator:
    """Ranks by a model's verdicts on pairs of completions."""

    def __init__(
        self, asker: Asker, template: Template, budget: Budget, settings: JudgeSettings, name: str = "judge"
    ) -> None:
        self.asker, self.template, self.budget, self.settings, self.name = asker, template, budget, settings, name
        self.cache = AnswerCache(settings.cache, asker.identity)
        self.stopped = ""
        self.counts = dict.fromkeys(COUNTS, 0)

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgement | None]:
        """Return one judgement per comparison; None where the budget was spent or an answer said nothing."""
        return judge_all(self, comparisons)

    def stream(
        self, comparisons: Sequence[Comparison], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Judgement | Unanswered]]:
        """Yield judgements as they come. Raises ``AnnotatorError`` when there is no use in asking further."""
        self.stopped = ""
        waiting: dict[str, list[tuple[_Pending, tuple[int, int]]]] = {}
        for index, comparison in enumerate(comparisons):
            pending = _Pending(index, len(comparison.completions))
            for pair in self._orders(comparison):
                pending.verdicts[pair] = None
                waiting.setdefault(self._question(comparison, *pair), []).append((pending, pair))
            if not pending.verdicts:  # a single completion, or none
                yield index, Judgement((0,) * pending.count, (0.0,) * pending.count)
        questions = list(waiting)
        self.counts["questions"] += len(questions)
        known = self.cache.get_many(questions)
        self.counts["cached"] += len(known)
        for question, answer in known.items():
            yield from self._deliver(waiting[question], answer)
        asked = [question for question in questions if question not in known]
        try:
            for place, answer in self.asker.ask(asked, should_stop):
                if answer.text is not None:
                    self.cache.put(asked[place], answer)
                yield from self._deliver(waiting[asked[place]], answer)
        finally:
            self.counts |= {
                "calls": self.budget.calls,
                "retries": self.budget.retries,
                "tokens": self.budget.tokens,
            }
        if any(not pending.done for places in waiting.values() for pending, _ in places):
            self.stopped = self.budget.spent

    def _orders(self, comparison: Comparison) -> list[tuple[int, int]]:
        # Which pairs are asked, and in which order without swapping, hangs on the texts and not on their places: so
        # the judgement moves with the completions.
        texts, most = comparison.completions, self.settings.max_pairs
        if most and most < len(texts) - 1:
            raise SettingsError(
                f"judge.max_pairs is {most}, but {len(texts)} completions are joined by {len(texts) - 1} pairs at the "
                "least; raise it, or set it to 0 for all pairs"
            )
        digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        order = sorted(range(len(texts)), key=lambda index: (digests[index], index))
        orders = []
        for one, other in pairs_to_ask(order, most):
            if self.settings.swap:
                orders += [(one, other), (other, one)]
            else:
                coin = hashlib.sha256(b"".join(sorted((digests[one], digests[other])))).digest()[0] % 2
                ahead = digests[one] < digests[other]
                orders.append((one, other) if bool(coin) == ahead else (other, one))
        return orders

    def _question(self, comparison: Comparison, first: int, second: int) -> str:
        texts = comparison.completions
        return self.template.question(as_text(comparison.prompt), texts[first], texts[second])

    def _deliver(
        self, places: Sequence[tuple[_Pending, tuple[int, int]]], answer: Answer
    ) -> Iterator[tuple[int, Judgement | Unanswered]]:
        verdict = ""
        if answer.text is None:
            self.counts["failed"] += 1
        else:
            found = Reading[str](None, answer.unreadable) if answer.unreadable else self.template.read(answer.text)
            verdict = found.value or ""
            if not verdict:
                self.counts["unreadable"] += 1
                reason = f"unreadable ({found.reason})"
                self.counts[reason] = self.counts.get(reason, 0) + 1
        for pending, pair in places:
            pending.verdicts[pair] = verdict
            pending.failed |= answer.text is None
            if pending.done:
                yield pending.index, self._conclude(pending)

    def _conclude(self, pending: _Pending) -> Judgement | Unanswered:
        """Return the ranking that the verdicts make; a pair counts when each question about it has a verdict."""
        outcomes = []
        for (first, second), verdict in pending.verdicts.items():
            swapped = pending.verdicts.get((second, first), verdict)
            if (second, first) in pending.verdicts and first > second:
                continue  # its twin is handled
            if not verdict or not swapped:
                continue
            points = POINTS[verdict]
            if (second, first) in pending.verdicts and points != 1 - POINTS[swapped]:
                points = POINTS[TIE]
            outcomes.append((first, second, points))
        if not connected(pending.count, [(first, second) for first, second, _ in outcomes]):
            return Unanswered("failed" if pending.failed else "unreadable")
        scores = strengths(pending.count, outcomes)
        verdicts = [[first, second, verdict] for (first, second), verdict in pending.verdicts.items()]
        return Judgement(dense_ranks(scores, EQUAL), scores, {"verdicts": verdicts})


def build_judge(settings: JudgeSettings, name: str = "") -> StreamingAnnotator:
    """Return the judge that the settings describe; a local model is loaded when the first question is put.

    Raises ``SettingsError`` for what is known to be wrong beforehand: no model, no client library, no key.
    """
    budget = budget_of(settings)
    at_once = not settings.base_url and settings.answer != "text"
    template = load_template(settings, at_once)
    asker: Asker
    if settings.base_url:
        from lmrl.judges.endpoint import EndpointAsker

        asker = EndpointAsker(settings, budget)
    else:
        from lmrl.judges.local import LocalAsker

        asker = LocalAsker(settings, budget, Choices(VERDICT_LINE, VERDICTS) if at_once else None)
    return JudgeAnnotator(asker, template, budget, settings, name or settings.model or "judge")
