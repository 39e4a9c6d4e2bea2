"""Instructions and questions are a user's message for a model with a chat template; texts to continue are not."""

from __future__ import annotations

import json

import pytest

from lmrl.data import PromptSettings, load_examples, load_prompts, load_rows
from lmrl.data.records import ChatExample

SPOKEN = {
    "alpaca": {"instruction": "do it", "output": "done"},
    "alpaca with input": {"instruction": "do it", "input": "now", "output": "done"},
    "dolly": {"instruction": "do it", "context": "", "response": "done"},
    "question": {"question": "who", "answer": "me"},
    "instruction preference": {"instruction": "do it", "chosen": "done", "rejected": "no"},
}
CONTINUED = {
    "prompt": {"prompt": "once upon"},
    "prompt and completion": {"prompt": "once upon", "completion": " a time"},
    "preference": {"prompt": "once upon", "chosen": " a time", "rejected": " x"},
}


def written(tmp_path, row, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(2)))
    return str(path)


@pytest.mark.parametrize("row", SPOKEN.values(), ids=SPOKEN)
@pytest.mark.parametrize("way", ["rows", "file", "through a data set"])
def test_what_is_spoken_is_asked(row, way, tmp_path, chat_codec, letters, caplog):
    caplog.set_level("INFO", "lmrl")
    path = written(tmp_path, row)
    source = {"rows": [row, row], "file": path}.get(way) or load_rows(PromptSettings(path=path))
    asked = load_prompts(source, codec=chat_codec)
    assert asked.prompt_ids is not None
    (message,) = asked.columns["prompt_messages"][0]
    assert message["role"] == "user" and message["content"].startswith((row.get("instruction") or row["question"])[:3])
    said = [text for text in caplog.messages if "2 prompts are instructions or questions" in text]
    assert len(said) == 1 and 'chat = "off"' in said[0]
    completed = load_prompts(source, codec=letters)
    assert completed.prompt_ids is None and "prompt_messages" not in completed.columns
    assert completed.prompts[0] == message["content"]


@pytest.mark.parametrize("row", SPOKEN.values(), ids=SPOKEN)
def test_it_is_the_rule_of_fine_tuning(row, tmp_path):
    (example, *_) = load_examples([row]).examples
    assert isinstance(example, ChatExample)


@pytest.mark.parametrize("row", CONTINUED.values(), ids=CONTINUED)
@pytest.mark.parametrize("way", ["rows", "file", "through a data set"])
def test_what_is_continued_stays_text(row, way, tmp_path, chat_codec):
    path = written(tmp_path, row)
    source = {"rows": [row, row], "file": path}.get(way) or load_rows(PromptSettings(path=path))
    found = load_prompts(source, codec=chat_codec)
    assert found.prompt_ids is None and found.prompts == ["once upon"] * 2


def test_lines_of_a_text_file_are_continued(tmp_path, chat_codec):
    (tmp_path / "lines.txt").write_text("once upon\na time\n")
    assert load_prompts(str(tmp_path / "lines.txt"), codec=chat_codec).prompt_ids is None


@pytest.mark.parametrize(
    ("settings", "chats"),
    [
        ({"chat": "off"}, False),
        ({"chat": "on"}, True),
        ({"template": "ask {question}"}, False),
        ({"template": "ask {question}", "chat": "on"}, True),
        ({"column": "question"}, True),
        ({"column": "answer"}, True),
        ({"column": "note"}, False),
        ({"column": "note", "chat": "on"}, True),
    ],
)
def test_settings_decide(settings, chats, tmp_path, chat_codec):
    path = written(tmp_path, {"question": "who", "answer": "me", "note": "once upon"})
    for source in (None, load_rows(PromptSettings(path=path, **settings))):
        found = load_prompts(source, PromptSettings(path=path, **settings) if source is None else None, chat_codec)
        assert (found.prompt_ids is not None) == chats


def test_a_data_set_read_with_chat_off_stays_text(tmp_path, chat_codec):
    rows = load_rows(PromptSettings(path=written(tmp_path, SPOKEN["alpaca"]), chat="off"))
    assert load_prompts(rows, codec=chat_codec).prompt_ids is None
