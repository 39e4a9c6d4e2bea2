import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.errors import DataError, RewardError, SettingsError
from lmrl.rewards import builtin_specs
from lmrl.rewards.lexicon import read_lexicon

SPECS = {spec.name: spec for spec in builtin_specs()}


def make(name, **settings):
    spec = SPECS[name]
    return spec.build(spec.settings(**settings))


def score(name, response, columns=None, **settings):
    columns = {key: [value] for key, value in (columns or {}).items()}
    (value,) = make(name, **settings)(["prompt"], [response], **columns)
    return value


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("good\t2.0\t0.5\t[1, 3]\nbad\t-3\n:)\t1.5\t0.1\t[]\r\n\nno\t-1.2\nhappy\t4\n", encoding="utf-8")
    return str(path)


def squashed(total):
    return total / math.sqrt(total * total + 15)


@pytest.mark.parametrize(
    ("name", "settings", "bounds"),
    [
        ("happy_end", {"happy": 2.0, "none": 0.5}, (-1, 2)),
        ("good_story", {"end": 1.0, "request": -0.5}, (-1.5, 1)),
        ("pattern", {"pattern": "a"}, (0, 1)),
        ("pattern", {"pattern": "a", "mode": "count", "limit": 3}, (0, 3)),
        ("pattern", {"pattern": "a", "mode": "count"}, None),
        ("length", {"maximum": 5}, (0, 1)),
        ("length", {"mode": "linear"}, None),
        ("repetition", {}, (-1, 0)),
        ("exact_match", {"right": -1.0}, (-1, 0)),
        ("numeric_answer", {"missing": -0.5}, (-0.5, 1)),
    ],
)
def test_rewards_know_their_bounds(name, settings, bounds):
    assert make(name, **settings).bounds == bounds


def test_an_answer_that_is_missing_is_no_word():
    with pytest.raises(RewardError, match="the column 'answer' contains None in row 1 of the batch"):
        make("exact_match")(["a", "b"], ["x", "None"], answer=["x", None])


def test_every_reward_has_settings_with_defaults_and_a_summary():
    names = ["happy_end", "good_story", "lexicon", "pattern", "length", "repetition", "exact_match"]
    names += ["numeric_answer", "math_answer", "multiple_choice", "judge"]
    assert [name for name in SPECS if name != "learned"] == names
    assert all(spec.summary and spec.settings() for spec in SPECS.values())


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("", 0.0),
        ("nothing known", 0.0),
        ("good", 2.0),
        ("GOOD, good!", 4.0),
        ("(good) \N{LEFT DOUBLE QUOTATION MARK}bad\N{RIGHT DOUBLE QUOTATION MARK}", -1.0),
        ("hello :)", 1.5),
        ("not good", 2.0 * -0.74),
        ("not a very good", 2.0 * -0.74),
        ("not a very very good", 2.0),
        ("she didn't look happy", 4.0 * -0.74),
        ("she didn\N{RIGHT SINGLE QUOTATION MARK}t look happy", 4.0 * -0.74),
        ("no good", -1.2 + 2.0 * -0.74),
        ("not bad", -3 * -0.74),
    ],
)
def test_lexicon_by_hand(lexicon, text, total):
    assert score("lexicon", text, path=lexicon) == pytest.approx(squashed(total))
    assert score("lexicon", text, path=lexicon, negate=True) == pytest.approx(-squashed(total))


def test_lexicon_without_negation(lexicon):
    assert score("lexicon", "not good", path=lexicon, negation_window=0) == pytest.approx(squashed(2.0))


@given(st.text())
def test_lexicon_is_bounded(text):
    from lmrl.rewards.lexicon import Lexicon

    reward = Lexicon.__new__(Lexicon)
    reward.valences, reward.sign, reward.negation_window = {"a": 3.0, "b": -3.0}, 1.0, 3
    assert -1.0 < reward.sentiment(text) < 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good\t2\nbad -3\n", "line 2: found 'bad -3'; expected a word, a tab and a number"),
        ("good\ttwo\n", "line 1"),
        ("good\tnan\n", "line 1"),
        ("\t2.0\n", "line 1"),
        ("\n\n", "is empty"),
    ],
)
def test_broken_lexicons(tmp_path, content, message):
    path = tmp_path / "words.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_lexicon(path)


def test_lexicons_that_are_not_there(tmp_path, lexicon):
    with pytest.raises(SettingsError, match="needs a file"):
        make("lexicon")
    with pytest.raises(DataError, match=r"no lexicon file .*lexicn.txt; did you mean .*lexicon.txt"):
        make("lexicon", path=lexicon.replace("lexicon.txt", "lexicn.txt"))
    with pytest.raises(DataError, match="no lexicon file"):
        make("lexicon", path=str(tmp_path / "nowhere" / "file.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        make("lexicon", path=str(tmp_path))
    (tmp_path / "latin.txt").write_bytes("caf\xe9\t1\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        make("lexicon", path=str(tmp_path / "latin.txt"))
    with pytest.raises(SettingsError, match="negation_window"):
        make("lexicon", path=lexicon, negation_window=-1)


@pytest.mark.parametrize(
    ("response", "settings", "expected"),
    [
        ("a cat", {"pattern": "c.t"}, 1.0),
        ("a dog", {"pattern": "c.t"}, 0.0),
        ("a cat", {"pattern": "c.t", "mode": "absent"}, 0.0),
        ("a dog", {"pattern": "c.t", "mode": "absent"}, 1.0),
        ("cat cat CAT", {"pattern": "cat", "mode": "count"}, 2.0),
        ("cat cat CAT", {"pattern": "cat", "mode": "count", "ignore_case": True}, 3.0),
        ("cat cat CAT", {"pattern": "cat", "mode": "count", "limit": 1}, 1.0),
        ("a cat", {"pattern": "cat", "where": "full"}, 0.0),
        (" cat\n", {"pattern": "cat", "where": "full"}, 1.0),
        ("a cat", {"pattern": "cat", "where": "full", "mode": "absent"}, 1.0),
        ("a\nb", {"pattern": "a.b"}, 0.0),
        ("a\nb", {"pattern": "a.b", "dot_matches_newline": True}, 1.0),
    ],
)
def test_pattern_by_hand(response, settings, expected):
    assert score("pattern", response, **settings) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set its pattern"),
        ({"pattern": "(a"}, r"'\(a' is not a regular expression.*position 0"),
        ({"pattern": "a", "mode": "count", "where": "full"}, "use mode = 'match'"),
        ({"pattern": "a", "limit": 2}, "limit belongs to mode = 'count'"),
        ({"pattern": "a", "limit": -2}, "limit is -2"),
    ],
)
def test_bad_patterns(settings, message):
    with pytest.raises(SettingsError, match=message):
        make("pattern", **settings)


@pytest.mark.parametrize(
    ("response", "settings", "expected"),
    [
        ("one two three", {"minimum": 2, "maximum": 4}, 1.0),
        ("one", {"minimum": 2, "maximum": 4}, 0.9),
        ("", {"minimum": 5, "falloff": 4.0}, 0.0),
        ("one two three", {"maximum": 1, "falloff": 4.0}, 0.5),
        ("one two three", {"maximum": 2, "falloff": 0.0}, 0.0),
        ("it's well-known, Tom.", {"minimum": 3, "maximum": 3, "falloff": 0.0}, 1.0),
        ("  abc ", {"unit": "characters", "minimum": 3, "maximum": 3, "falloff": 0.0}, 1.0),
        ("one two three", {"mode": "linear", "cost": 0.5}, -1.5),
        ("abc", {"mode": "linear", "unit": "characters", "cost": -1.0}, 3.0),
    ],
)
def test_length_by_hand(response, settings, expected):
    assert score("length", response, **settings) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a band"),
        ({"minimum": 5, "maximum": 4}, "minimum <= maximum"),
        ({"minimum": -1}, "minimum is -1"),
        ({"maximum": 3, "falloff": -1.0}, "falloff is -1.0"),
    ],
)
def test_bad_lengths(settings, message):
    with pytest.raises(SettingsError, match=message):
        make("length", **settings)


@pytest.mark.parametrize(
    ("response", "n", "expected"),
    [
        ("a b a b a b", 2, -3 / 5),  # ab ba ab ba ab
        ("A a", 1, -0.5),
        ("a b c d", 2, 0.0),
        ("a", 2, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repetition_by_hand(response, n, expected):
    assert score("repetition", response, n=n) == pytest.approx(expected)


@given(st.text(), st.integers(1, 5))
def test_repetition_is_bounded(text, n):
    assert -1.0 < score("repetition", text, n=n) <= 0.0


def test_repetition_needs_a_positive_n():
    with pytest.raises(SettingsError, match="n is 0"):
        make("repetition", n=0)


def test_happy_end():
    reward = make("happy_end")
    assert reward(["p"] * 4, [" She smiled.", " She cried.", " She", ""]) == [1.0, -1.0, 0.0, 0.0]
    assert make("happy_end", none=-2.0)(["p"], [" She"]) == [-2.0]


def test_shipped_rewards_pickle(lexicon):
    settings = {"lexicon": {"path": lexicon}, "pattern": {"pattern": "a+"}, "length": {"maximum": 3}}
    for name in SPECS:
        if name in ("learned", "judge"):  # they need a model and have tests of their own
            continue
        reward = make(name, **settings.get(name, {}))
        columns = {"answer": ["2"]}
        assert pickle.loads(pickle.dumps(reward))(["p"], ["aa 2"], **columns) == reward(["p"], ["aa 2"], **columns)


def test_the_real_lexicon_finds_real_samples_positive(shared_data):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "models" / "stories260K-llama"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = tokenizer(["Once upon a time"] * 128, return_tensors="pt")
    torch.manual_seed(0)
    rows = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64, eos_token_id=[1, 2], pad_token_id=0)
    texts = tokenizer.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    scores = make("lexicon", path=str(shared_data / "rl" / "vader_lexicon.txt"), negate=True)([""] * 128, texts)
    assert -0.75 < sum(scores) / len(scores) < -0.45
