"""What a judge is asked and how its answer is read."""

import pytest

from lmrl.errors import SettingsError
from lmrl.judges.questions import as_text, load_template
from lmrl.judges.settings import JudgeSettings

TEMPLATE = load_template(JudgeSettings(), at_once=False)


def test_what_is_filled_in_is_not_filled_in_again():
    question = TEMPLATE.question("{first} {x}", "{second}", "{prompt} {}")
    assert "\n{first} {x}\n" in question and "\n{second}\n" in question and "\n{prompt} {}\n" in question


def test_conversations_are_written_out():
    asked = [{"role": "user", "content": "Hi"}]
    assert as_text("plain") == "plain" and as_text(asked) == "Hi"
    longer = [{"role": "system", "content": "Be short."}, *asked, {"role": "assistant", "content": "Yes?"}]
    assert as_text(longer) == "System: Be short.\n\nUser: Hi\n\nAssistant: Yes?"


def test_a_template_of_ones_own(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("Kinder? 1: {first} 2: {second} ({criterion})", encoding="utf-8")
    settings = JudgeSettings(template=str(file), criterion="kind", verdict="winner=(A|B|TIE)")
    template = load_template(settings, at_once=True)
    assert template.question("p", "x", "y") == "Kinder? 1: x 2: y (kind)"
    assert template.read("winner=b").value == "B" and template.read("Verdict: A").value is None


@pytest.mark.parametrize(
    ("verdict", "reply", "expected"),
    [
        ("winner: (A|B|TIE)", "winner: a tie", "TIE"),
        ("winner: (A|B|TIE)", "winner: a close call", None),
        ("winner: (A|B|TIE)", "winner: A.", "A"),
        ("winner: (A|B|TIE)", "winner: A\nwinner: B", "B"),
        ("winner: (A|B|TIE)", "<think>winner: A</think> none", None),
        ("winner: (A|B|TIE)", "<think>winner: A", None),
        ("<w>(A|B|TIE)</w>", "<w>B</w> is it", "B"),
        ("(A|B) ist besser", "A ist besser als B", "A"),
        ("winner: (A|B)?", "winner: ", None),
    ],
)
def test_an_expression_of_ones_own_takes_no_article_for_a_letter_either(verdict, reply, expected):
    assert load_template(JudgeSettings(verdict=verdict), at_once=False).read(reply).value == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{frist} {second}", r"no place \{first\}; expected .* Is \{frist\} meant"),
        ("{first} alone", r"no place \{second\}"),
    ],
)
def test_a_template_without_its_places_is_refused(tmp_path, content, message):
    (tmp_path / "mine.txt").write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_template(JudgeSettings(template=str(tmp_path / "mine.txt")), at_once=False)


def test_a_missing_or_broken_template_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"\xff\xfe{first}")
    with pytest.raises(SettingsError, match=r"mein\.txt cannot be read.*did you mean .*mine\.txt"):
        load_template(JudgeSettings(template=str(tmp_path / "mein.txt")), at_once=False)
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_template(JudgeSettings(template=str(tmp_path / "mine.txt")), at_once=False)


@pytest.mark.parametrize(("verdict", "message"), [("(A|B", "no regular expression"), ("A|B", "expected a group")])
def test_a_broken_expression_is_refused(verdict, message):
    with pytest.raises(SettingsError, match=message):
        load_template(JudgeSettings(verdict=verdict), at_once=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "judge.concurrency is 0; expected a number of at least 1"),
        ({"max_calls": -1}, "judge.max_calls"),
        ({"timeout": 0.0}, "judge.timeout"),
        ({"base_url": "localhost:8000"}, "judge.base_url is 'localhost:8000'"),
        ({"base_url": "http://x", "answer": "logprobs"}, "judge.answer"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        JudgeSettings(**settings)
