"""What a person types, and what becomes of it."""

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.annotators import Comparison
from lmrl.annotators.annotators import Judgement, Unanswered
from lmrl.annotators.person import PersonAnnotator, UnreadableAnswer, read_ranking, shuffled
from lmrl.annotators.ranks import compact_ranks

PAIR = Comparison("Hello?", "Hello?", ("yes", "no"))
THREE = Comparison(({"role": "user", "content": "Hi"},), "", ("one", "two", "three"))


def session(typed, *comparisons, seed=0):
    out = io.StringIO()
    annotator = PersonAnnotator(seed=seed, stdin=io.StringIO(typed), stdout=out)
    return annotator, list(annotator.stream(comparisons)), out.getvalue()


@pytest.mark.parametrize(
    ("typed", "count", "ranks"),
    [
        ("2>1=3", 3, (1, 0, 1)),
        (" 3 > 2 > 1 ", 3, (2, 1, 0)),
        ("1=2=3", 3, (0, 0, 0)),
        ("tie", 4, (0, 0, 0, 0)),
        ("a", 2, (0, 1)),
        ("B", 2, (1, 0)),
        ("a=b", 2, (0, 0)),
        ("b>a", 2, (1, 0)),
        ("2>1", 2, (1, 0)),
    ],
)
def test_rankings_are_read(typed, count, ranks):
    assert read_ranking(typed, count) == ranks


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_every_ranking_can_be_typed(ranks):
    groups = itertools.groupby(sorted(range(len(ranks)), key=ranks.__getitem__), key=ranks.__getitem__)
    typed = ">".join("=".join(str(i + 1) for i in group) for _, group in groups)
    assert read_ranking(typed, len(ranks)) == compact_ranks(ranks)


@pytest.mark.parametrize(
    ("typed", "count", "message"),
    [
        ("", 3, "Nothing was typed"),
        ("2>1", 3, "3 is missing"),
        ("2>1>2", 3, "named twice"),
        ("4>1>2", 3, "no completion 4"),
        ("x>1", 3, "'x' is no completion; expected a ranking such as 2>3=1"),
        ("1>>2", 2, "'nothing' is no completion"),
        ("c", 2, "expected a, b or tie"),
        ("\N{SUPERSCRIPT TWO}>1", 2, "is no completion"),
    ],
)
def test_what_is_no_ranking_is_explained(typed, count, message):
    with pytest.raises(UnreadableAnswer, match=message):
        read_ranking(typed, count)


def test_a_session_with_errors_a_skip_and_an_undo():
    typed = "what\n1>2\nu\nb\ns\n2>1>3\n"
    annotator, events, shown = session(typed, PAIR, PAIR, THREE)
    order, three = shuffled(PAIR.completions, 0), shuffled(THREE.completions, 0)
    best = Judgement(tuple(order))  # the one shown first has rank 0
    assert events[0] == (0, best)
    assert events[1] == (0, Unanswered("undone"))
    assert events[2] == (0, Judgement(tuple(1 - rank for rank in order)))
    assert events[3] == (1, Unanswered("skipped"))
    assert events[4][1].ranks[three[1]] == 0 and events[4][1].ranks[three[2]] == 2
    assert "'what' is no completion; expected a, b or tie." in shown
    assert annotator.stopped == ""


def test_undo_at_the_beginning_is_explained():
    _, events, shown = session("u\na\n", PAIR)
    assert "nothing to undo" in shown and len(events) == 1


@pytest.mark.parametrize("typed", ["a\nq\n", "a\n"])
def test_quitting_and_the_end_of_the_input_keep_what_was_answered(typed):
    annotator, events, _ = session(typed, PAIR, PAIR)
    assert len(events) == 1 and annotator.stopped
    assert PersonAnnotator(stdin=io.StringIO(typed), stdout=io.StringIO()).judge([PAIR, PAIR])[1] is None


def test_the_order_shown_hangs_on_nothing_but_texts_and_seed():
    texts = ["a", "b", "c", "d"]
    for order in itertools.permutations(range(4)):
        moved = [texts[i] for i in order]
        assert [moved[i] for i in shuffled(moved, 7)] == [texts[i] for i in shuffled(texts, 7)]
    shown_first = {shuffled([f"{i}", f"{i}x"], 0)[0] for i in range(50)}
    assert shown_first == {0, 1}, "one place would always be shown first"


def test_a_text_cannot_take_over_the_terminal():
    _, _, shown = session("s\n", Comparison("p\x1b[2J", "p", ("x\x1b]0;title\x07", "long " * 60)))
    assert "\x1b" not in shown and "\x07" not in shown and max(map(len, shown.splitlines())) <= 100
