import math
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.errors import SettingsError
from lmrl.stories import is_happy, object_consistency, story, story_hero, story_object, story_place
from lmrl.stories.grammar import TURNS, in_split
from lmrl.stories.words import CATEGORIES, GIRLS, HEROES, OBJECTS, PLACES


@given(st.integers())
def test_a_seed_gives_one_story_whose_measures_are_its_truth(seed):
    told = story(seed)
    assert story(seed) == told
    assert is_happy(told.text) is told.happy
    assert object_consistency("", told.text) == 1.0
    assert (story_hero(told.text), story_object(told.text), story_place(told.text)) == (
        told.hero,
        told.object,
        told.place,
    )
    assert told.text == " ".join(told.sentences)


@given(st.integers(0, 2**32))
def test_pronouns_follow_the_hero_and_the_friend_is_somebody_else(seed):
    told = story(seed)
    words = told.text.replace(".", "").replace(",", "").split()
    wrong = {"he", "He", "his"} if told.hero in GIRLS else {"she", "She", "her"}
    assert not wrong & set(words)
    others = {word for word in words if word in HEROES} - {told.hero}
    assert len(others) <= 1
    if "they" in words or "shared" in words:
        assert others


def test_a_generator_goes_on_where_it_was():
    generator = random.Random(7)
    drawn = [story(generator).text for _ in range(50)]
    assert len(set(drawn)) == 50
    generator = random.Random(7)
    assert drawn == [story(generator).text for _ in range(50)]


def test_happy_ends_are_as_frequent_as_the_grammar_says():
    expected = sum(share for _, share in TURNS) / len(TURNS)
    generator = random.Random(0)
    count = 4000
    happy = sum(story(generator).happy for _ in range(count))
    assert expected == pytest.approx(0.45)
    assert abs(happy / count - expected) < 4 * math.sqrt(0.25 / count)


def test_one_text_has_one_probability():
    generator = random.Random(1)
    seen = {}
    for _ in range(5000):
        told = story(generator)
        assert seen.setdefault(told.text, told.log_probability) == pytest.approx(told.log_probability)


def test_the_log_probability_of_a_story_by_hand():
    # 16 heroes, 27 objects, the kind's adjectives, 10 places, 3 verbs, 10 times; 5 wishes, 6 turns, then the end.
    generator = random.Random(2)
    without_friend = [told for told in (story(generator) for _ in range(300)) if _plain(told)]
    told = next(one for one in without_friend if not one.happy and "big dog" in one.text)
    kind = next(kind for kind in CATEGORIES if told.object in kind.nouns)
    ways = [16, len(OBJECTS), len(kind.adjectives), 10, 3, 10, 5, 6, 4, 5]
    expected = -sum(math.log(way) for way in ways) + math.log(0.6) + math.log(0.7)
    assert told.log_probability == pytest.approx(expected)


def _plain(told):
    return len(told.sentences) == 4 and sum(name in told.text for name in HEROES) == 1


def test_splits_share_no_combination_and_cover_all():
    combinations = [(hero, thing, place) for hero in HEROES for thing in OBJECTS for place in PLACES]
    test = [one for one in combinations if in_split(*one, "test")]
    assert all(in_split(*one, "train") != in_split(*one, "test") for one in combinations)
    assert 0.17 < len(test) / len(combinations) < 0.23


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_story_of_a_split_belongs_to_it(split):
    for seed in range(50):
        told = story(seed, split)
        assert in_split(told.hero, told.object, told.place, split)


def test_an_unknown_split_is_an_error():
    with pytest.raises(SettingsError, match="split is 'dev'; expected one of train, test, all"):
        story(0, "dev")


def test_importing_the_world_needs_no_torch():
    code = "import sys, lmrl.stories, lmrl.rewards; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
