"""Verdicts in a judge's reply: explicit forms only, no article for a letter, nothing from unfinished reasoning."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.judges.reading import CONTRADICTION, OPEN_REASONING, without_reasoning
from lmrl.judges.verdicts import read_verdict

FORMS = {
    "A": (
        "Verdict: A",
        "**Verdict: A**",
        "## Verdict\n\nA",
        "Verdict: [[A]]",
        "[[A]]",
        "[[A>B]]",
        "[[A>>B]]",
        "A > B",
        "A >> B",
        "Response A is better than B",
        "Response A is better.",
        "Verdict: Answer A",
        "Verdict: A, because it is shorter.",
        "Verdict: A because it rhymes",
        "Verdict: A (slightly better)",
        "Verdict: A - it is kinder",
        "Verdict: A — it is kinder",
        "I prefer the first.",
        "I prefer Answer A over Answer B.",
        " (a). ",
        "\\boxed{\\text{A}}",
        "The winner is A.",
        "My final verdict is A.",
        "Overall, A is better because it is right.",
        "A wins.",
        "A",
        "Answer A",
        "B is worse than A.",
        "<answer>A</answer>",
        "<verdict>A</verdict>",
        '{"reason": "B is bad", "winner": "Response A"}',
        "It is fine. Verdict: A",
        '```json\n{"verdict": "A"}\n```',
        "{'verdict': 'A'}",
        "Verdict: A is better than B.",
        "Verdict: I prefer A.",
        "Verdict: A over B",
        "Verdict: the first one",
        "A is better than B.\nB is better in tone.\n\nVerdict: A",
        "Some words about it.\n\nA",
        "**A**\n\nIt is kinder.",
        "<B>A</B>",
        "Verdict: A.\nVerdict: A",
        '"Verdict: A"',
        "Final answer: A",
        "Better response: A",
        "Verdict: A wins",
        "Verdict: A > B",
        "Answer A is more helpful than Answer B.",
        "verdict:a",
        "VERDICT = A",
        "Verdict A",
        "Verdict: A<|im_end|>",
        "Verdict: A</s>",
        "<|channel|>analysis<|message|>Verdict: B<|end|><|start|>assistant<|channel|>final<|message|>Verdict: A",
        "Better: A",
        "[THINK]Verdict: B[/THINK]Verdict: A",
        "◁think▷ Verdict: B ◁/think▷ Verdict: A",
    ),
    "B": (
        "verdict: b",
        "Answer B",
        "<B>",
        "**B**",
        "\\boxed{B}",
        '{"verdict": "B"}',
        "I prefer the second",
        "B > A",
        "A < B",
        'Verdict: "B"',
        "Verdict: B.",
        "I would pick the second one.",
        "I'd go with Response B.",
        "the latter",
        "[B]",
        "`B`",
        "'B'",
        "(B)",
        "B.",
        "Verdict: <B>",
        'I would write "Verdict: A" at first, but no.\nVerdict: B',
        "<think>Verdict: A</think>Verdict: B",
        "Verdict: A</think>\nVerdict: B",
        "<b>B</b>",
        "response b is better",
        "Verdict: not obvious at first.\n\nVerdict: B",
        "My final verdict is: [[B]]",
        "My final verdict is: Assistant B is significantly better: [[B>>A]]",
        "A \u227a B",
        '{"better_response": "B"}',
        '{"Final-Verdict": "response_b"}',
        '{"choice": "model_b", "worst_response": "A"}',
        "Verdict: Response_B",
        "Verdict: answer-b",
        "Verdict: Response 2",
        "Response 1 is worse than Response 2.",
        "Verdict \u2013 B",
        "Verdict: B \u2705",
        "I slightly prefer B.",
        "I'd say B is better.",
        "Based on this, Answer B is better.",
        "Answer A leaves out the year. Therefore B.",
        "I have no preference for long answers. B is better.",
    ),
    "TIE": (
        "Verdict: equally good",
        "Verdict: no preference",
        "Both answers are equal.",
        "They are equally good.",
        "I consider this a tie.",
        "Neither answer is better.",
        "A ~ B",
        "Verdict: a tie",
        "It's a tie",
        "Tied",
        "tie",
        "Verdict: TIE",
        "Verdict: A tie",
        "Verdict: it's a tie.",
        "A = B",
        "Verdict: Tie - both are equally good",
        "It is a draw.",
        "They are tied.",
        "Verdict: C",
        "Verdict: tied",
        '{"verdict": "tie"}',
        "[[C]]",
        "Both answers are tied.",
        "**TIE**",
        "Verdict: A = B",
        "Verdict: a draw",
        "It\u2019s a tie.",
    ),
    None: (
        "The two answers are the same in length.",
        "Verdict: the same as before, A",
        "Verdict: equal parts A and B",
        "So A mentions Paris.",
        "Answer: 2",
        "Response 2.5 is better",
        '{"not_preferred": "A"}',
        "My final verdict is: A better answer exists",
        "A and B are equally good",
        "Neither",
        "Verdict: neither",
        "I'm sorry, I cannot compare these.",
        "Verdict: A\nVerdict: B",
        "Verdict: A and B",
        "Verdict: A or B",
        "Verdict: A/B",
        "Verdict: A, B",
        "Verdict: A close call",
        "Verdict: a close call",
        "Verdict: A better explanation makes B the winner",
        "Verdict: a slight preference for B",
        "A tie would be unfair",
        "A is better in style, but B is right",
        "If A is better than B, say so.",
        "Is A better than B?",
        "I do not think A is better than B",
        "<think>Verdict: A",
        "Verdict: A<think>",
        "",
        "  ",
        "The verdict is out.",
        "Verdict: Answer",
        "A good answer",
        "Vitamin B",
        "Plan A\nPlan B",
        "A.\nB.",
        "Verdict: A?",
        "Verdict: A and B are equally good",
        "A better answer exists.",
        "Verdict: A\nOn reflection I am unsure.\nVerdict: unclear",
        'Reply with "Verdict: A", "Verdict: B" or "Verdict: TIE".',
        "Verdict: A.I. wrote both",
        "Verdict: tie-break",
        "Verdict: a\nclose call",
        '{"verdict": null}',
        '{"verdict": "neither"}',
        "Answer A\nshort\nAnswer B\nlong",
        "A is better than B. B is better than A.",
        "Verdict: A+",
        "Verdict: A is worse than I hoped",
        "It is not a tie.",
        "The verdict is not A.",
        "A is not better than B.",
        "\\boxed{7}",
        'I would say "Verdict: A".',
        "Answer a question first.",
        "A for effort",
        "As I see it, both are fine.",
        "Verdict: As good as it gets",
        "◁think▷Verdict: A",
        "[THINK]Verdict: A",
        "<thinking>Verdict: A",
        "<|channel|>analysis<|message|>Verdict: A",
        "Verdict: not B but A",
        "Verdict: almost a tie, but A",
        "Winner: a newcomer",
        "Answer: a story about a cat",
    ),
}
CASES = [(reply, verdict) for verdict, replies in FORMS.items() for reply in replies]
WORDS = ["A", "a", "An", "the", "story", "about", "better", "is", "answer", "good", "and", "B", "of", "both", "kind"]
NOUNS = ["close", "better", "slight", "story", "good", "big", "nuanced", "B", "tie-break", "total", "few", "lot"]


@pytest.mark.parametrize(("reply", "verdict"), CASES, ids=[repr(reply)[:40] for reply, _ in CASES])
def test_verdicts_are_read(reply, verdict):
    found = read_verdict(reply)
    assert found.value == verdict
    assert bool(found.reason) == (verdict is None), "an unreadable reply has a reason, and no other"


def test_reasons_tell_what_is_wrong():
    assert read_verdict("<think>Verdict: A").reason == OPEN_REASONING
    assert read_verdict("Verdict: A\nVerdict: B").reason == CONTRADICTION
    assert read_verdict("[[A]] Winner: B").reason == CONTRADICTION


@given(st.sampled_from(["Verdict: ", "verdict is ", "Winner: ", "**Verdict:** "]), st.sampled_from("Aa"), st.data())
def test_an_article_behind_a_label_is_no_letter(label, article, data):
    words = data.draw(st.lists(st.sampled_from(NOUNS), min_size=1, max_size=4))
    assert read_verdict(f"{label}{article} {' '.join(words)}").value is None


@given(st.lists(st.sampled_from(WORDS), min_size=4, max_size=12).map(" ".join))
def test_prose_without_an_explicit_form_gives_nothing(prose):
    """Sentences of articles, letters and comparing words; those that happen to say that one is better are explicit."""
    if not re.search(r"\b[AaB] is (?:the )?better\b|\b[AB]$", prose):
        assert read_verdict(f"It seems: {prose} today.").value is None


@given(st.text(st.characters(exclude_characters="AaBbCcTtFfSsLlDd0123456789")))
def test_texts_without_the_words_of_a_verdict_give_nothing(text):
    assert read_verdict(text).value is None


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text):
    found = read_verdict(text)
    assert found.value in ("A", "B", "TIE", None)


@given(st.sampled_from(CASES), st.sampled_from(["Verdict: A", "I prefer the second.", "[[B]]", "It's a tie", "x"]))
def test_reasoning_changes_no_verdict_and_unfinished_reasoning_has_none(case, thought):
    reply, verdict = case
    if without_reasoning(reply) == reply.strip():
        assert read_verdict(f"<think>{thought}</think>\n{reply}").value == verdict
        assert read_verdict(f"{thought}</think>\n{reply}").value == verdict
        assert read_verdict(f"{reply}\n<think>{thought}").value is None


@given(st.sampled_from([reply for reply in FORMS["A"] if "Verdict: A" in reply]))
def test_a_second_verdict_that_contradicts_the_first_makes_both_unreadable(reply):
    assert read_verdict(f"{reply}\n\nVerdict: B").value in (None, "B")
    assert read_verdict("Verdict: B\n\nVerdict: A").value is None
