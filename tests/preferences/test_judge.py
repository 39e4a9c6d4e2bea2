"""Judging pair by pair: swapping, ties, aggregation, cache."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.annotators import Comparison
from lmrl.annotators.annotators import Judgement, Unanswered
from lmrl.annotators.judge import JudgeAnnotator
from lmrl.annotators.ranks import dense_ranks
from lmrl.errors import SettingsError
from lmrl.judges.asking import Answer, Budget
from lmrl.judges.questions import load_template
from lmrl.judges.settings import JudgeSettings

ANSWERS = re.compile(r"=== Answer A ===\n(.*?)\n\n=== Answer B ===\n(.*?)\n\n=== Your verdict", re.DOTALL)
TEXTS = st.lists(st.text("abc", max_size=6), min_size=2, max_size=5, unique_by=str.strip)


def longer(first, second):
    return "A" if len(first) > len(second) else "B" if len(second) > len(first) else "TIE"


class Rule:
    """Answers by a rule on the two texts, from memory."""

    identity = "rule"

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def ask(self, questions, should_stop):
        for place, question in enumerate(questions):
            self.asked.append(question)
            verdict = self.rule(*ANSWERS.search(question).groups())
            yield place, Answer(verdict if verdict is None else f"Verdict: {verdict}")


def judge(rule, cache="", **changes):
    chosen = JudgeSettings(cache=cache, **changes)
    return JudgeAnnotator(Rule(rule), load_template(chosen, False), Budget(), chosen)


def compare(*texts):
    return Comparison("prompt", "prompt", texts)


@given(TEXTS)
@settings(max_examples=50)
def test_a_consistent_judge_ranks_as_it_likes(texts):
    (judged,) = judge(longer).judge([compare(*texts)])
    assert judged.ranks == dense_ranks([len(text) for text in texts])


@given(TEXTS, st.booleans(), st.randoms())
@settings(max_examples=50)
def test_permuting_completions_permutes_the_judgement(texts, swap, random):
    """Also for a judge who contradicts itself, who prefers a position, and who is asked about some pairs only."""
    order = random.sample(range(len(texts)), len(texts))

    def moody(first, second):
        return "A" if sum(map(ord, first)) % 3 else "B"

    annotator = judge(moody, swap=swap, max_pairs=len(texts) - 1)
    plain, moved = annotator.judge([compare(*texts), compare(*(texts[i] for i in order))])
    assert moved.ranks == tuple(plain.ranks[i] for i in order)
    assert moved.scores == pytest.approx([plain.scores[i] for i in order])


def test_swapped_answers_that_differ_make_a_tie():
    always_first = judge(lambda first, second: "A")
    assert always_first.judge([compare("x", "y", "z")])[0].ranks == (0, 0, 0)
    assert len(always_first.asker.asked) == 6
    once = judge(lambda first, second: "A", swap=False)
    assert sorted(once.judge([compare("x", "y")])[0].ranks) == [0, 1] and len(once.asker.asked) == 1


def test_a_tie_in_one_order_and_a_win_in_the_other_is_a_tie():
    annotator = judge(lambda first, second: "A" if first == "x" else "TIE")
    assert annotator.judge([compare("x", "y")])[0].ranks == (0, 0)


def test_verdicts_are_kept_for_the_report():
    (judged,) = judge(longer).judge([compare("xx", "y")])
    assert sorted(judged.details["verdicts"]) == [[0, 1, "A"], [1, 0, "B"]]


def test_unreadable_answers_are_counted_and_leave_what_they_can():
    annotator = judge(lambda first, second: "?" if "z" in (first, second) else longer(first, second))
    answers = dict(annotator.stream([compare("xx", "y"), compare("y", "z"), compare("yy", "y", "z")]))
    assert isinstance(answers[0], Judgement)
    assert answers[1] == Unanswered("unreadable") and answers[2] == Unanswered("unreadable")
    assert annotator.counts["unreadable"] == 4, "y against z is one question, whoever asks it"


def test_pairs_without_a_verdict_do_not_stop_a_ranking_that_others_carry():
    annotator = judge(lambda first, second: "?" if {first, second} == {"x", "yyy"} else longer(first, second))
    assert annotator.judge([compare("x", "yy", "yyy")])[0].ranks == (2, 1, 0)


def test_no_question_is_put_twice(tmp_path):
    cache = str(tmp_path / "deep" / "cache.sqlite")
    comparisons = [compare("xx", "y"), compare("y", "xx"), compare("xx", "y", "zzz")]
    first = judge(longer, cache)
    judged = first.judge(comparisons)
    assert len(first.asker.asked) == 6 and first.counts["cached"] == 0
    again = judge(longer, cache)
    assert again.judge(comparisons) == judged
    assert again.asker.asked == [] and again.counts["cached"] == 6
    other = judge(longer, cache, criterion="short")
    other.judge(comparisons)
    assert len(other.asker.asked) == 6, "another question is another question"


def test_another_judge_has_its_own_answers(tmp_path):
    cache = str(tmp_path / "cache.sqlite")
    judge(longer, cache).judge([compare("xx", "y")])
    other = judge(lambda first, second: "TIE", cache)
    other.cache.judge = "another model"
    assert other.judge([compare("xx", "y")])[0].ranks == (0, 0)


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("these are my notes, and no database at all")
    with pytest.raises(SettingsError, match=r"notes\.txt cannot be used .*judge\.cache"):
        judge(longer, str(tmp_path / "notes.txt")).judge([compare("x", "y")])
    assert (tmp_path / "notes.txt").read_text() == "these are my notes, and no database at all"


def test_too_few_pairs_for_a_ranking_are_refused():
    with pytest.raises(SettingsError, match="max_pairs is 1, but 3 completions are joined by 2 pairs"):
        judge(longer, max_pairs=1).judge([compare("x", "y", "z")])


def test_a_single_completion_needs_no_question():
    annotator = judge(longer)
    assert annotator.judge([compare("x")])[0].ranks == (0,) and annotator.asker.asked == []
