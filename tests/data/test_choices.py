"""Answers that are the place of one choice and the text of another, accepted answers, and labels that are classes."""

from __future__ import annotations

import pytest

from lmrl.data import RowSettings, load_examples, load_prompts, load_rankings
from lmrl.data.logged import load_logged
from lmrl.errors import DataError

WORDS = ["north", "south", "east", "west"]
COUNT = ["1", "2", "3", "4"]


def rows_of(*answered):
    return [
        {"question": f"q{place}", "choices": choices, "answer": said} for place, (choices, said) in enumerate(answered)
    ]


@pytest.mark.parametrize(
    ("rows", "letters"),
    [
        (rows_of((COUNT, 1), (WORDS, 0)), "BA"),
        (rows_of((COUNT, "1"), (WORDS, "0")), "BA"),
        (rows_of((COUNT, 1.0), (WORDS, 0.0)), "BA"),
        (rows_of((COUNT, 1), (WORDS, 4)), "AD"),
        (rows_of((COUNT, 1)), "B"),
        (rows_of((["K", "D", "A", "C"], "A"), (WORDS, "C")), "AC"),
        (rows_of((["K", "D", "A", "C"], "A")), "A"),
        (rows_of((["4", "3", "2", "1"], "2"), (["10", "12", "14"], "12")), "CB"),
        (rows_of((["4", "3", "2", "1"], 2), (["10", "12", "14"], 12)), "CB"),
        (rows_of(([5, 4, 3], 4), ([9, 8, 7], 9)), "BA"),
        (rows_of((["4", "3", "2", "1"], "2")), "C"),
    ],
)
def test_all_rows_decide_whether_an_answer_is_a_place_or_a_text(rows, letters):
    assert "".join(load_prompts(rows).columns["answer"]) == letters
    said = [example.messages[-1]["content"] for example in load_examples(rows).examples]
    assert [text[0] for text in said] == list(letters)


def test_an_answer_that_may_be_either_is_left_out_where_both_occur():
    found = load_examples(rows_of((COUNT, "1"), (["10", "12", "14"], "12"), (WORDS, "1")))
    assert [example.messages[-1]["content"] for example in found.examples] == ["B. 12", "B. south"]
    assert found.skipped == {"an answer that is the text of one choice and the letter or number of another": 1}
    assert any("1 answers that are a letter or a number were read as the text" in note for note in found.notes)


@pytest.mark.parametrize(
    ("answer", "said", "noted"),
    [
        (True, "True", "true or false"),
        (["Paris", "Paris, France"], "Paris", "first of several"),
        ({"text": ["Paris", "the city"], "answer_start": [0, 4]}, "Paris", "first of several"),
        ({"value": "Paris", "aliases": ["City of Paris"]}, "Paris", ""),
        ([7], "7", ""),
    ],
)
def test_accepted_answers_of_public_layouts(answer, said, noted):
    found = load_examples([{"question": "q", "context": "c", "answer": answer}])
    assert found.examples[0].messages[-1]["content"] == said
    assert not noted or any("in 1 rows, " in note and noted in note for note in found.notes)


def test_a_question_without_an_accepted_answer_is_left_out():
    rows = [{"question": "q", "answer": {"text": text}} for text in (["a"], [])]
    assert load_examples(rows).skipped == {"no answer": 1}


@pytest.mark.parametrize(
    "labels", [(1, 2, 3, 4, 5), (0, 1, 2, 3), ("1", "2", "1", "2"), ("world", "sports", "business")]
)
@pytest.mark.parametrize("row", [{"prompt": "p", "completion": "c"}, {"text": "t"}])
def test_labels_that_are_classes_or_grades_are_refused(row, labels):
    rows = [{**row, "label": label} for label in labels]
    readers = (
        [load_rankings] if "text" in row else [load_examples, load_rankings, lambda rows: load_logged("label", rows)]
    )
    for read in readers:
        with pytest.raises(DataError, match=r"the labels are .*; expected true or false, 1 or 0"):
            read(rows)


@pytest.mark.parametrize(("good", "bad"), [("yes", "no"), ("desirable", "undesirable"), ("Good", "bad"), (1, -1)])
def test_words_and_numbers_for_good_and_bad(good, bad):
    rows = [{"prompt": "p", "completion": said, "label": label} for said, label in (("a", good), ("b", bad))]
    assert [example.completion for example in load_examples(rows).examples] == ["a"]
    assert [answer.reward for answer in load_logged("label", rows).answers] == [1.0, 0.0]


def test_the_label_of_llama_factory_is_read():
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": said}], "kto_tag": tag}
        for said, tag in (("a", True), ("b", False))
    ]
    found = load_examples(rows)
    assert [example.messages[-1]["content"] for example in found.examples] == ["a"]
    assert any("'kto_tag' is read as 'label'" in note for note in found.notes)


@pytest.mark.parametrize(
    ("row", "proposed"),
    [
        ({"question": "q", "choices": WORDS, "answerKey": "B"}, 'data.columns.answer="answerKey"'),
        (
            {"title": "t", "context": "c", "question": "q", "answers": {"text": ["a"]}},
            'data.columns.answer="answers"',
        ),
        (
            {"query_id": "1", "passage": "p", "query": "q", "answers": ["a"]},
            'data.columns.question="query" data.columns.answer="answers" data.columns.context="passage"',
        ),
        (
            {"question": "q", "distractor1": "d", "correct_answer": "a", "support": "s"},
            'data.columns.answer="correct_answer" data.columns.context="support"',
        ),
    ],
)
def test_the_proposed_mapping_loads_the_rows(row, proposed):
    with pytest.raises(DataError) as error:
        load_examples([row])
    assert f"Perhaps: {proposed}." in str(error.value)
    columns = dict(pair.removeprefix("data.columns.").split("=") for pair in proposed.replace('"', "").split())
    [example] = load_examples([row], RowSettings(columns=columns)).examples
    assert example.messages[0]["content"].count("q") >= 1
