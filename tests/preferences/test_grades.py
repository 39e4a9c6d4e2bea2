"""Grades in a judge's reply: explicit forms only, on the scale, one value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.judges.verdicts import OUTSIDE, read_grade

GRADES = {
    4.0: (
        "Grade: 4", "grade: 4", "**Grade:** 4", "Grade: 4/5", "Grade: 4 out of 5", "Score: [[4]]", "[[4]]",
        "\\boxed{4}", '{"grade": 4}', '{"why": "good", "score": "4"}', "<score>4</score>", "4", "4/5", "**4**",
        "It is kind.\n\n4", "I give it a 4.", "Rating: 4.", "It lies once. Grade: 4", "Grade: 4 because it is short.",
        "<think>Grade: 1</think>Grade: 4", "The final grade is 4.", "Grade: 4.0", "Grade: 4 points", "Grade 4",
        "Grade: 4, since it has 2 errors.", "## Grade\n\n4", "Grade: 4 (2 errors)", "Grade: <4>",
        "Grade: 4 \u2b50", "Grade: 4 (out of 5)", "I give this response a 4 out of 5.", "I'd rate this a 4.",
        "The response deserves a 4 because it is short.", '{"overall_score": 4}', '{"Final-Grade": "4/5"}',
        "My final grade is: 4", "Grade \u2013 4",
    ),
    3.5: ("Grade: 3.5", "3.5/5", "The response deserves a 3.5."),
    None: (
        "Grade: 7", "Grade: 0", "Grade: -4", "Grade: 4/10", "Grade: 3-4", "Grade: 3 to 4", "Grade: 3 or 4",
        "Grade: 3,5", "Grade: 3, 4", "Grade: 4 (out of 10)", "Grade: \u22123", "Grade: .5", "I'd give it a 4/10.",
        "Grade: A", "Grade: four", "Grade: 4\nGrade: 3", "Grade: 80%", "", "There are 4 errors.", "<think>Grade: 4",
        "I cannot grade this.", "Grade: N", "4 of 5 facts are right.", "Grade: 4th", "Grade: unsure", "1. good\n2. bad",
        "Grade: 4 errors were found", "I would not give it a 4.", '{"grade": null}', "The answer is 4.", "3\n4",
    ),
}  # fmt: skip
CASES = [(reply, grade) for grade, replies in GRADES.items() for reply in replies]


@pytest.mark.parametrize(("reply", "grade"), CASES, ids=[repr(reply) for reply, _ in CASES])
def test_grades_are_read(reply, grade):
    found = read_grade(reply, 1, 5)
    assert found.value == grade
    assert bool(found.reason) == (grade is None)


def test_a_grade_outside_the_scale_says_so():
    assert read_grade("Grade: 7", 1, 5).reason == OUTSIDE
    assert read_grade("Grade: 7", 1, 10).value == 7 and read_grade("Grade: 7/10", 0, 10).value == 7


@given(st.text(st.characters(exclude_categories=["N"])))
def test_texts_without_a_number_have_no_grade(text):
    assert read_grade(text, 1, 5).value is None


@given(st.text("Grade: 0123456789/.-, \n", max_size=30))
def test_every_grade_lies_on_the_scale(text):
    grade = read_grade(text, 1, 5).value
    assert grade is None or 1 <= grade <= 5
