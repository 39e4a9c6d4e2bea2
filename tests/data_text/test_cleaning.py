"""Rules, languages, repair and duplicates: each says what it left out, and equal documents meet equal fates."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.corpus import Cleaner, CleanSettings, CorpusReport, Document, QualityRules
from lmrl.corpus.duplicates import ExactDuplicates, NearDuplicates, normal_form, shingle_hashes
from lmrl.corpus.quality import broken_rule, filter_lines, repeated
from lmrl.errors import SettingsError

OFF = QualityRules(**{field.name: type(field.default)(0) for field in fields(QualityRules)})
PROSE = "The mill stands by the river and nobody has worked there with joy. "


def clean(texts, **options):
    report = CorpusReport()
    documents = [Document(text, "memory", number) for number, text in enumerate(texts, start=1)]
    for document in documents:
        report.read(document)
    kept = list(Cleaner(CleanSettings(**options)).clean(documents, report))
    assert report.documents_in == report.documents_out + report.dropped_documents
    return [document.text for document in kept], report


RULES = [
    ("min_words", 4, "a b c", "too few words"),
    ("max_words", 2, "a b c", "too many words"),
    ("min_mean_word_length", 3.0, "I am at it", "words too short"),
    ("max_mean_word_length", 5.0, "incomprehensible gibberish", "words too long"),
    ("max_symbol_ratio", 0.1, "# one # two three", "too many symbols"),
    ("max_symbol_ratio", 0.1, "one... two\u2026 three", "too many symbols"),
    ("max_bullet_lines", 0.5, "- one\n\u2022 two\nthree", "too many bullet points"),
    ("max_ellipsis_lines", 0.3, "one...\ntwo", "too many lines end in an ellipsis"),
    ("min_alphabetic_words", 0.8, "one 2 3 4", "too few words with letters"),
    ("min_stop_words", 2, "the dog, the cat", "too few stop words"),
    ("max_repeated_lines", 0.3, "one\none\ntwo", "too many repeated lines"),
    (
        "max_repeated_line_characters",
        0.2,
        "a long line here\nx\ny\nz\na long line here",
        "too many characters in repeated lines",
    ),
    ("lorem_ipsum", True, "A Lorem  text: lorem ipsum dolor", "lorem ipsum"),
    ("curly_brackets", True, "if (x) { y }", "curly bracket"),
]


@pytest.mark.parametrize(
    ("name", "value", "text", "reason"), RULES, ids=[f"{rule[0]}-{n}" for n, rule in enumerate(RULES)]
)
def test_each_rule_alone_finds_its_case_and_no_other_text(name, value, text, reason):
    rules = replace(OFF, **{name: value})
    assert broken_rule(text, rules) == reason
    assert broken_rule(text, OFF) == ""
    assert broken_rule("The mill, to be sure, stands\nby the river and nobody works.", rules) in (
        "",
        "too many words",
        "words too long" if value == 5.0 else "",
    )


def test_gophers_thresholds_are_not_crossed_by_being_reached():
    assert broken_rule("x " * 9 + "#", replace(OFF, max_symbol_ratio=0.1)) == ""
    assert broken_rule("one 2 three four five", replace(OFF, min_alphabetic_words=0.8)) == ""
    assert repeated(["a", "bb", "a", "a"]) == (0.5, 0.4)


def test_lines_are_removed_and_the_rest_is_the_same():
    text = "Please enable JavaScript.\nProse stays.\n\nWe use cookies.\n" + "x" * 1001 + "\nEnd"
    left, removed = filter_lines(text, QualityRules())
    assert left == "Prose stays.\n\nEnd" and sum(removed.values()) == len(text) - len(left)
    assert filter_lines(text, OFF) == (text, {})
    strict = replace(OFF, punctuated_lines=True)
    assert filter_lines("Menu\nA sentence.\nMore...\n\u201cSaid.\u201d", strict)[0] == "A sentence.\n\u201cSaid.\u201d"


def test_a_document_without_a_line_left_is_dropped():
    kept, report = clean(["Enable javascript"], quality=True, rules=OFF)
    assert kept == ["Enable javascript"]
    kept, report = clean(["Enable javascript"], quality=True, rules=replace(OFF, script_lines=True))
    assert not kept and report.dropped["quality"]["no line left"].documents == 1


def test_the_report_counts_reasons_and_goes_through_json():
    texts = [PROSE * 10, PROSE * 10, "short", PROSE * 10 + "\nEnable javascript", "lorem ipsum " * 60]
    kept, report = clean(texts, quality=True)
    assert kept == [PROSE * 10]
    assert [(step, reason, documents) for step, reason, documents, _, _ in report.rows()] == [
        ("quality", "too few words", 1),
        ("quality", "lorem ipsum", 1),
        ("exact duplicates", "equal to an earlier document", 2),
    ]
    assert report.changed["quality"]["lines with javascript removed"].characters == len("Enable javascript") + 1
    assert CorpusReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert "| in | | 5 |" in report.to_markdown() and "memory:3" in report.to_markdown()


def test_languages(shared):
    pytest.importorskip("py3langid")
    english = PROSE * 3
    german = "Die alte Mühle steht am Fluss, und seit vielen Jahren hat dort niemand mehr gearbeitet. " * 3
    assert clean([english, german], languages=["en"])[0] == [english]
    assert clean([english, german], languages=["de", "fr"])[0] == [german]
    assert clean([english, german], languages=["de", "en"])[0] == [english, german]
    _, report = clean([english, "abc"], languages=["en"], min_language_probability=0.9)
    assert report.dropped_documents == 1
    with pytest.raises(SettingsError, match=r"clean\.languages: unknown language 'english'"):
        clean([english], languages=["english"])


def test_the_aragonese_page_is_left_out(shared, read):
    pytest.importorskip("py3langid")
    pytest.importorskip("warcio")
    documents, report = read(shared / "data" / "text" / "whirlwind.warc.wet.gz")
    assert not list(Cleaner(CleanSettings(languages=["en"])).clean(documents, report))
    assert list(report.dropped["language"]) == ["language an"]


def test_real_web_documents_are_mostly_kept(shared, read):
    documents, report = read(shared / "data" / "text" / "c4_demo.jsonl")
    kept = list(Cleaner(CleanSettings(quality=True)).clean(documents, report))
    assert report.documents_in == 300 and 260 < len(kept) < 300
    assert len(kept) + report.dropped_documents == 300


def test_encoding_is_repaired_and_quotes_are_left_alone():
    pytest.importorskip("ftfy")
    kept, report = clean(["schÃ¶n", "\u201cso\u201d", "schön"], fix_encoding=True, exact_duplicates=False)
    assert kept == ["schön", "\u201cso\u201d", "schön"] and report.changed["repair"]["encoding repaired"].documents == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "A ", "ü", "u\u0308", " \n", "a  b"]).map(lambda s: s + "!"), max_size=20))
def test_exact_deduplication_keeps_the_first_of_each_class_and_does_nothing_twice(texts):
    kept, _ = clean(texts)
    expected = list({normal_form(text): text for text in reversed(texts)}.values())
    assert sorted(kept) == sorted(expected) and len({normal_form(text) for text in kept}) == len(kept)
    assert clean(kept)[0] == kept
    memory = ExactDuplicates()
    assert [text for text in texts if not memory.seen_before(text)] == kept


def words(generator, count):
    return [f"w{generator.randrange(500)}" for _ in range(count)]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32).map(random.Random))
def test_near_deduplication_keeps_distinct_documents_and_drops_copies(generator):
    pytest.importorskip("datasketch")
    originals = [words(generator, 120) for _ in range(8)]
    edited = [list(text) for text in originals]
    for text in edited:
        text[generator.randrange(120)] = "changed"  # one of 120 words: 5 of 116 shingles, similarity 0.92
    texts = [" ".join(text) for text in [*originals, *edited]]
    kept, report = clean(texts, near_duplicates=True, near_threshold=0.7, permutations=128)
    assert kept == texts[:8] and report.dropped["near duplicates"]
    assert clean(kept, near_duplicates=True, near_threshold=0.7)[0] == kept


def test_the_estimated_similarity_is_that_of_the_shingles():
    pytest.importorskip("datasketch")
    generator = random.Random(0)
    memory = NearDuplicates(permutations=512)
    for changes in (0, 3, 10, 30, 100):
        first = words(generator, 400)
        second = list(first)
        for place in generator.sample(range(400), changes):
            second[place] = "other"
        sets = [{tuple(row[i : i + 5]) for i in range(396)} for row in (first, second)]
        true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        estimate = memory.signature(" ".join(first)).jaccard(memory.signature(" ".join(second)))
        assert abs(estimate - true) < 4 * (true * (1 - true) / 512) ** 0.5 + 1e-9


def test_shingles_are_those_of_the_normal_form_and_short_texts_have_one():
    assert (shingle_hashes("One,  TWO three!", 2) == shingle_hashes("one two three", 2)).all()
    assert len(shingle_hashes("one two", 5)) == 1 and len(shingle_hashes("...", 5)) == 0
    assert len(shingle_hashes("a b c d e f", 5)) == 2


def test_documents_without_words_are_not_all_near_duplicates():
    pytest.importorskip("datasketch")
    assert clean(["!?", "...", PROSE], near_duplicates=True)[0] == ["!?", "...", PROSE]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near_threshold": 0.0}, r"clean\.near_threshold is 0\.0"),
        ({"permutations": 1}, r"clean\.permutations is 1"),
        ({"shingle_words": 0}, r"clean\.shingle_words is 0"),
        ({"min_language_probability": 2.0}, r"clean\.min_language_probability"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(SettingsError, match=message):
        CleanSettings(**options)
