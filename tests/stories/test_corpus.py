import json
from itertools import islice

from lmrl.rewards import resolve
from lmrl.stories import is_happy, request_share, requests, story_hero, story_object, story_place
from lmrl.stories.corpus import conversations, documents, write_jsonl
from lmrl.stories.grammar import in_split


def test_documents_repeat_with_their_seed_and_hold_every_kind():
    drawn = list(documents(0, 400))
    assert drawn == list(documents(0, 400)) and drawn != list(documents(1, 400))
    assert list(islice(documents(0, 400), 20)) == drawn[:20]
    asked = [text for text in drawn if text.startswith("Story: ")]
    assert 0.25 < len(asked) / 400 < 0.45 and any("Please tell" in text for text in drawn)


def test_conversations_answer_what_was_asked():
    for row in conversations(0, 200):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        if user["content"].startswith("Please"):
            assert (
                request_share(user["content"], assistant["content"]) == 1 and is_happy(assistant["content"]) is not None
            )
        else:
            assert user["content"].endswith("?") and assistant["content"].endswith(".")


def test_requests_of_the_splits_share_none():
    train, test = requests(0, 500), requests(0, 200, "test")
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    for row in test:
        named = story_hero(row["prompt"]), story_object(row["prompt"]), story_place(row["prompt"])
        assert named == (row["hero"], row["object"], row["place"]) and in_split(*named, "test")
        assert "{" not in row["prompt"] and row["prompt"].endswith(".")


def test_the_good_story_reward_by_hand():
    asked = "Please tell a story about Mia and a red ball in the park."
    kept = "One day, Mia found a red ball in the park. At last the ball was safe, and Mia smiled."
    sad = "One day, Tom saw a kite by the lake. Nobody could help the kite, and Tom cried."
    result = resolve("good_story")([asked, asked, asked], [kept, sad, "One day,"])
    assert result.scores.tolist() == [2.0, -1.0, 0.0]
    assert result.parts["end"].tolist() == [1, -1, 0] and result.parts["request"].tolist() == [1, 0, 0]
    assert resolve("good_story", {"end": 3.0})([asked], [kept]).scores.tolist() == [4.0]


def test_files_hold_the_rows(tmp_path):
    path = write_jsonl(tmp_path / "a" / "rows.jsonl", [{"text": "é"}, {"text": "b"}])
    assert [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()] == ["é", "b"]
    assert [item.name for item in path.parent.iterdir()] == ["rows.jsonl"]
