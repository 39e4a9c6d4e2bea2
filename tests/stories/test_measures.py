import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.stories import is_happy, object_consistency, request_share, story_hero, story_object, story_place


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" In the end Tom smiled.", True),
        (" In the end Tom cried.", False),
        (" He was happy. Then he cried.", False),
        (" He cried. Then he was happy.", True),
        (" He was not happy.", False),
        (" He was not very happy.", False),
        (" He was never sad.", True),
        (" He never saw the ball again, and Tom laughed.", True),
        (" The sad cat smiled.", True),
        (" He was happy. The ball was red.", None),
        (" He was happy", None),
        (" and was happy. He", None),
        (" ", None),
        ("", None),
        (".", None),
        (" HAPPY!", True),
        (' "I am glad."', True),
        (" unhappy.", None),
        (" He was glad. '", None),
        (' "He was glad."\n', True),
        (" He was sad.''", None),
    ],
)
def test_the_last_feeling_of_the_last_complete_sentence_decides(text, expected):
    assert is_happy(text) is expected


def test_a_long_text_without_an_end_is_read_once():
    started = time.perf_counter()
    assert is_happy("so happy " * 10_000) is None
    assert time.perf_counter() - started < 1.0, "a search that starts anew at every character takes over a minute"


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("Mia found a ball.", " She liked the ball. The ball fell.", 1.0),
        ("Mia found a ball.", " The kite fell. The kite broke.", 0.0),
        ("Mia found a ball.", " The ball fell. The kite broke. The ball. The doll.", 0.5),
        ("Mia found a ball.", " She smiled.", 0.0),
        ("Mia", " found a ball. The ball fell.", 1.0),
        ("Mia", " found a ball.", 0.0),
        ("", "", 0.0),
    ],
)
def test_object_consistency_by_hand(prompt, response, expected):
    assert object_consistency(prompt, response) == expected


def test_first_mentions():
    assert story_hero("The dog saw Tom and Mia.") == "Tom"
    assert story_object("The kite, then the ball.") == "kite"
    assert story_place("on the farm, not in the park") == "on the farm"
    assert (story_hero(""), story_object("nothing"), story_place("here")) == ("", "", "")


@given(st.text(), st.text())
def test_any_text_is_taken(prompt, response):
    assert is_happy(response) in (True, False, None)
    assert 0.0 <= object_consistency(prompt, response) <= 1.0


def test_a_story_keeps_its_request_in_parts():
    asked = "Please tell a story about Mia and a red ball in the park."
    assert request_share(asked, "One day, Mia found a red ball in the park. The ball was gone.") == 1
    assert request_share(asked, "One day, Tom saw a kite by the lake.") == 0
    assert request_share(asked, "One day, Mia saw a ball in the park, and the kite.") == pytest.approx(
        (1 + 1 + 0.5) / 3
    )
    assert request_share("Hello.", "One day, Mia found a ball in the park.") == 0
