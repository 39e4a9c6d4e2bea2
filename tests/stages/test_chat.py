"""Chatting without a terminal: what the model is asked, what is kept, commands, and what does not fit."""

from __future__ import annotations

import json

import pytest

from lmrl.data import ChatExample, CompletionExample, load_examples
from lmrl.engines.protocol import FinishReason, SamplingSpec
from lmrl.engines.settings import SamplingSettings
from lmrl.engines.texts import sample_texts
from lmrl.errors import DataError, PromptError, SettingsError
from lmrl.models import load
from lmrl.stages.chat import ChatSession, chat
from lmrl.stages.chat.loop import converse
from lmrl.stages.chat.stream import Stream
from lmrl.stories import MODEL_PATH


@pytest.fixture(scope="module")
def chatter(chat_folder):
    return load(chat_folder)


@pytest.fixture(scope="module")
def stories():
    return load(MODEL_PATH)


def session_of(model, **settings):
    sampling = SamplingSettings(**({"max_new_tokens": 6, "temperature": 1.0} | settings))
    return ChatSession(model, sampling=sampling)


def say(session, text):
    return "".join(session.say(text))


# Streams


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_samples_what_the_engine_samples(stories, temperature):
    card = stories.card
    spec = SamplingSpec(temperature=temperature, max_new_tokens=40, eos_ids=card.eos_ids, context_length=256)
    for seed, text in enumerate(["Mia found a red ball.", "One day, Ben"]):
        prompt = card.codec.encode(text)
        [expected] = sample_texts(stories, [prompt], spec, seed)
        stream = Stream(stories, prompt, spec, seed)
        pieces = list(stream.pieces())
        assert stream.ids == expected.ids and stream.finish == expected.finish
        assert "".join(pieces) == stream.text == expected.text and len(pieces) > 5


def test_a_stream_of_byte_tokens_is_the_engines_text(shared):
    model = load(shared / "data" / "models" / "stories260K-llama")
    spec = SamplingSpec(max_new_tokens=48, eos_ids=model.card.eos_ids, temperature=1.6)
    for seed in range(4):
        prompt = model.card.codec.encode("Once upon a time")
        stream = Stream(model, prompt, spec, seed)
        assert "".join(stream.pieces()) == stream.text == sample_texts(model, [prompt], spec, seed)[0].text


def test_stop_strings_are_held_back_until_they_are_none(stories):
    card = stories.card
    prompt = card.codec.encode("Mia found a red ball.")
    spec = SamplingSpec(temperature=0, max_new_tokens=30, eos_ids=card.eos_ids)
    whole = "".join(Stream(stories, prompt, spec, 0).pieces())
    words = whole.split(" ")
    stop = f"{words[4]} {words[5]}"
    stream = Stream(stories, prompt, SamplingSpec(temperature=0, max_new_tokens=30, stop_strings=(stop,)), 0)
    assert "".join(stream.pieces()) == whole[: whole.index(stop)] and stream.finish == FinishReason.STOP
    never = SamplingSpec(temperature=0, max_new_tokens=30, eos_ids=card.eos_ids, stop_strings=(f"{words[4]} zebra",))
    assert "".join(Stream(stories, prompt, never, 0).pieces()) == whole


# Sessions


def test_a_conversation_is_rendered_by_the_template(chatter):
    session = session_of(chatter)
    session.system = "the cat sat"
    first = say(session, "the dog ran")
    assert session.messages == [
        {"role": "user", "content": "the dog ran"},
        {"role": "assistant", "content": first},
    ]
    ids, dropped = session._fit([*session.messages, {"role": "user", "content": "home"}])
    rendered = chatter.card.codec.decode_batch([ids])[0]
    spoken = f"system : the cat sat user : the dog ran assistant : {first.strip()}".split()
    assert dropped == 0 and rendered.split() == [*spoken, *["user", ":", "home", "assistant", ":"]]
    assert chatter.card.eos_ids[0] in ids, "the answer is closed as in training"


def test_the_same_seed_says_the_same_and_again_says_something_else(chatter):
    one, two = session_of(chatter), session_of(chatter)
    assert [say(one, "the cat"), say(one, "ran")] == [say(two, "the cat"), say(two, "ran")]
    before = one.messages[-1]["content"]
    others = {"".join(one.again()) for _ in range(5)}
    assert others != {before} and len(one.messages) == 4 and one.messages[-2]["content"] == "ran"


def test_undo_and_reset(chatter):
    session = session_of(chatter)
    say(session, "the cat")
    say(session, "ran")
    assert session.undo() == "ran" and len(session.messages) == 2
    session.reset()
    assert session.messages == [] and session.undo() is None
    with pytest.raises(PromptError, match="nothing has been said"):
        list(session.again())


def test_another_answer_that_never_begins_leaves_the_last_one(chatter, monkeypatch):
    session = session_of(chatter)
    say(session, "the cat")
    before = list(session.messages)

    def broken(self):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Stream, "pieces", broken)
    with pytest.raises(KeyboardInterrupt):
        list(session.again())
    assert session.messages == before


@pytest.mark.parametrize("complete", [False, True])
def test_half_a_character_is_refused(chatter, complete):
    session = ChatSession(chatter, complete=complete)
    with pytest.raises(PromptError, match=r"'the .*' holds half a character at place 5: a byte that is not UTF-8"):
        say(session, "the \udcff")
    session.system = "\ud83d"
    if not complete:
        with pytest.raises(PromptError, match="half a character"):
            say(session, "the")
    assert not session.messages


def test_the_oldest_turns_leave_a_full_context(chatter):
    session = session_of(chatter, max_new_tokens=8)
    dropped = []
    for _ in range(8):
        say(session, "the cat sat far home")
        dropped.append(session.last.dropped)
    assert dropped[0] == 0 and dropped == sorted(dropped) and dropped[-1] >= 2 and dropped[-1] % 2 == 0
    assert len(session.messages) == 16, "what is said stays in the record"
    ids, left_out = session._fit([*session.messages, {"role": "user", "content": "the"}])
    assert len(ids) + 8 <= 64 and left_out >= 2


def test_the_system_prompt_stays_when_turns_are_dropped(chatter):
    session = session_of(chatter, max_new_tokens=8)
    session.system = "dog dog dog"
    for _ in range(8):
        say(session, "the cat sat far home")
    ids, dropped = session._fit([*session.messages, {"role": "user", "content": "the"}])
    assert dropped and chatter.card.codec.decode_batch([ids])[0].startswith("system : dog dog dog user :")


def test_a_message_too_long_for_the_context_is_refused_and_not_kept(chatter):
    session = session_of(chatter)
    say(session, "the cat")
    with pytest.raises(PromptError, match="leaves no room in the context of 64"):
        say(session, "the cat " * 60)
    assert len(session.messages) == 2
    with pytest.raises(PromptError, match="empty"):
        say(session, "  ")


def test_an_answer_that_is_broken_off_is_kept_as_far_as_it_came(stories):
    session = session_of(stories, max_new_tokens=60)
    pieces = session.say("Mia found a red ball.")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert session.last.finish == FinishReason.NONE and session.messages[-1]["content"].startswith(said)


def test_a_model_without_a_template_completes_and_an_empty_line_goes_on(stories):
    session = session_of(stories, max_new_tokens=5)
    assert not session.chats
    with pytest.raises(PromptError, match="no text to go on with"):
        say(session, "")
    first = say(session, "Mia found a red ball.")
    second = say(session, "")
    assert len(session.messages) == 2 and session.messages[1]["content"] == first + second
    assert session.rows() == [{"prompt": "Mia found a red ball.", "completion": first + second}]
    say(session, "Ben")
    assert len(session.messages) == 4
    say(session, "Mia found a ball. " * 100)
    assert session.last.dropped > 0


def test_complete_leaves_the_template_aside(chatter):
    session = ChatSession(chatter, complete=True)
    assert not session.chats and session._fit_text("the cat")[0] == chatter.card.codec.encode("the cat")


# Files


def test_a_saved_conversation_is_training_data_and_loads_again(chatter, tmp_path):
    session = session_of(chatter)
    session.system = "home"
    file = tmp_path / "new" / "chat.jsonl"
    with pytest.raises(DataError, match="nothing to save"):
        session.save(file)
    say(session, "the cat")
    session.save(file)
    say(session, "ran")
    session.save(file)
    if session.messages[1]["content"].strip() and session.messages[3]["content"].strip():
        examples = load_examples(str(file)).examples
        assert isinstance(examples[1], ChatExample) and len(examples) == 2
        assert list(examples[1].messages) == [{"role": "system", "content": "home"}, *session.messages]
    other = session_of(chatter)
    assert other.load(file) == 4
    assert (other.system, other.messages) == ("home", session.messages)


def test_saved_completions_are_training_data(stories, tmp_path):
    session = session_of(stories, max_new_tokens=20)
    text = say(session, "Mia found a red ball.")
    session.save(tmp_path / "c.jsonl")
    assert load_examples(str(tmp_path / "c.jsonl")).examples == [CompletionExample("Mia found a red ball.", text)]
    other = session_of(stories)
    assert other.load(tmp_path / "c.jsonl") == 2 and other.messages == session.messages


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "x"}],
        [{"messages": [{"role": "assistant", "content": "x"}]}],
        [{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}],
        [{"messages": []}],
        [{"messages": ["the cat", "ran"]}],
        [{"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]}],
    ],
)
def test_a_file_without_a_conversation_changes_nothing(chatter, tmp_path, rows):
    session = session_of(chatter)
    say(session, "the cat")
    before = list(session.messages)
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="holds no conversation"):
        session.load(tmp_path / "f.jsonl")
    assert session.messages == before
    with pytest.raises(DataError):
        session.load(tmp_path / "missing.jsonl")


# Settings


def test_settings_change_or_nothing_does(chatter):
    session = session_of(chatter)
    session.configure(["temperature=0.5", "top_k=3", "seed=9", 'stop_strings=["."]'])
    assert (session.sampling.temperature, session.sampling.top_k, session.seed) == (0.5, 3, 9)
    for wrong, message in (
        (["temprature=1"], "did you mean 'temperature'"),
        (["temperature=-1"], "finite number >= 0"),
        (["top_k=5", "top_p=2"], "top_p"),
        (["seed=x"], "expected an integer"),
        (["forbidden_ids=[99]"], "99"),
    ):
        with pytest.raises(SettingsError, match=message):
            session.configure(wrong)
    assert (session.sampling.temperature, session.sampling.top_k, session.seed) == (0.5, 3, 9)
    with pytest.raises(SettingsError, match="top_p"):
        ChatSession(chatter, sampling=SamplingSettings(top_p=0))


# The loop


def converse_with(session, *lines):
    waiting = iter(lines)

    def read():
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    written, notices = [], []
    converse(session, read, written.append, notices.append)
    return "".join(written), notices


def test_lines_are_answered_and_commands_obeyed(chatter, tmp_path):
    session = session_of(chatter)
    file = tmp_path / "a b.jsonl"
    output, notices = converse_with(
        session, "/system the cat", "the dog", "", "/again", f"/save {file}", "/undo", "/undo", f"/load {file}",
        "/settings temperature=0.25", "/settings temperature=x", "/sytem", "/load", "/history", "/help", "//quit the",
        "home\\", "far", "/reset", "/quit", "the dog",
    )  # fmt: skip
    assert output.count("\n") == 4, "two answers, one of them twice, and two more"
    said = "\n".join(notices)
    for expected in (
        "chats with its own template", "system prompt: the cat", f"(saved in {file})", "(taken back: the dog)",
        "(nothing to take back)", f"(2 messages of {file})", "temperature=0.25", "temperature is",
        "did you mean /system",
        "/load needs a file", "user: the dog", "Ctrl-C stops an answer", "the conversation is forgotten",
    ):  # fmt: skip
        assert expected in said, expected
    assert session.messages == []


def test_a_doubled_slash_and_a_backslash_are_text(chatter):
    session = session_of(chatter)
    converse_with(session, "//quit the", "home\\", "far")
    assert [message["content"] for message in session.messages[::2]] == ["/quit the", "home\nfar"]


def test_a_line_that_would_go_on_is_said_at_the_end_of_the_input(chatter):
    session = session_of(chatter)
    converse_with(session, "home\\", "far\\")
    assert session.messages[0]["content"] == "home\nfar"


def test_a_quote_that_is_not_closed_is_a_notice(chatter):
    session = session_of(chatter)
    _, notices = converse_with(session, "the cat", "/settings stop_strings='[", "ran")
    assert any("No closing quotation" in line and "quote as in a shell" in line for line in notices)
    assert len(session.messages) == 4, "the conversation goes on"


def test_what_a_person_should_know_of_an_answer_is_said(chatter, stories):
    session = session_of(chatter, max_new_tokens=1, forbidden_ids=[1])
    assert any("cut off at 1 tokens" in line for line in converse_with(session, "the")[1])
    _, notices = converse_with(session_of(stories), "Mia found a ball. " * 100, "", "/system x")
    assert any("completes text and is not chatted with" in line for line in notices)
    assert any("tokens no longer fit into the context" in line for line in notices)
    assert any("knows no system prompt" in line for line in notices)


def test_ctrl_c_stops_the_answer_and_not_the_loop(stories):
    session = session_of(stories, max_new_tokens=60)
    lines = iter(["Mia found a red ball.", "Ben"])
    written, notices = [], []

    def read():
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    def write(text):
        written.append(text)
        if len(written) == 3:
            raise KeyboardInterrupt

    converse(session, read, write, notices.append)
    assert "(stopped)" in notices and len(session.messages) == 4
    assert session.messages[1]["content"].startswith("".join(written[:2]))


def test_the_stage_function_takes_a_folder(chat_folder):
    lines = iter(["the cat"])

    def read():
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    written = []
    session = chat(chat_folder, read=read, write=written.append, notice=lambda line: None, device="cpu")
    assert "".join(written).strip() == session.messages[1]["content"].strip()
