import pytest

from lmrl.errors import SettingsError
from lmrl.stories import builtin_datasets, is_happy, openings, questions, story_hero, story_object, story_place
from lmrl.stories.grammar import in_split
from lmrl.stories.prompts import StoriesSettings


def test_openings_repeat_with_their_seed_and_are_distinct():
    drawn = openings(3, 200)
    assert drawn == openings(3, 200)
    assert len(set(drawn)) == 200
    assert drawn != openings(4, 200)
    assert openings(3, 20) == drawn[:20]
    assert openings(3, 0) == []


def test_openings_name_hero_object_and_place_and_no_end():
    drawn = openings(0, 300)
    for opening in drawn:
        assert story_hero(opening) and story_object(opening) and story_place(opening)
        assert opening == opening.strip() and opening[0].isupper()
        assert is_happy(opening.split(". ", 1)[0] + ".") is None
    assert len({len(opening.split()) for opening in drawn}) > 6


def test_the_splits_are_disjoint():
    train, test = openings(0, 2000, "train"), openings(0, 500, "test")
    assert not set(train) & set(test)
    for split, drawn in (("train", train), ("test", test)):
        for opening in drawn[:100]:
            assert in_split(story_hero(opening), story_object(opening), story_place(opening), split)


def test_questions_can_be_answered_from_their_prompt():
    rows = questions(0, 300)
    assert {row["kind"] for row in rows} == {"who", "what", "where", "feel"}
    for row in rows:
        told, asked = row["prompt"].split(" Question: ")
        assert told.startswith("Story: ") and asked.endswith("? Answer:")
        if row["kind"] == "feel":
            assert row["answer"] == ("happy" if is_happy(told) else "sad")
        else:
            assert row["answer"] in told
    assert len({row["prompt"] for row in rows}) == 300


def test_too_many_or_too_few_prompts_are_an_error(monkeypatch):
    with pytest.raises(SettingsError, match="count is -1"):
        openings(0, -1)
    monkeypatch.setattr("lmrl.stories.prompts._opening", lambda told, generator: "the same")
    with pytest.raises(SettingsError, match="fewer than 2 distinct openings; ask for at most 1"):
        openings(0, 2)


def test_the_data_set():
    (spec,) = builtin_datasets()
    assert spec.name == "stories"
    rows = spec.build(spec.settings(count=5, seed=2, split="test"))
    assert rows == [{"prompt": opening} for opening in openings(2, 5, "test")]
    rows = spec.build(StoriesSettings(kind="questions", count=3))
    assert [set(row) >= {"prompt", "answer"} for row in rows] == [True] * 3
    with pytest.raises(SettingsError, match="count is 0"):
        StoriesSettings(count=0)
