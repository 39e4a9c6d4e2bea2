"""Rewards that compare with an answer: what counts as right, and what is not read rather than half read."""

import json
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from multiprocessing import get_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.errors import RewardError, SettingsError
from lmrl.rewards import resolve
from lmrl.rewards.answers.multiple_choice import chosen_letter
from lmrl.rewards.answers.plain_numbers import plain_number


def score(name, response, answer, table=None, **columns):
    columns = {key: [value] for key, value in {"answer": answer, **columns}.items()}
    return resolve(name, table)(["prompt"], [response], columns).scores[0]


SAME_TEXTS = [
    ("(1, 2]", "( 1,2 ]."),
    ("[-1, .5, 3]", "**[-1,.5,3]**"),
    ("(5)", "5"),
    ("[1] Paris, 2", "1 Paris 2"),
    ("-24", "-24"),
    ("-24", "−24"),  # noqa: RUF001
    ("24", "24."),
    ("24", "(24)"),
    ("Mia", "**Mia**"),
    ("Mia", "*Mia*"),
    ("Mia", "“Mia!”"),
    ("a red ball", " A red ball."),
    ("don't", "dont"),
    ("U.S.", "US"),
    ("1,234", "1234"),
    ("2.5", "2.5."),
    ("1, 2", "1 2"),
    ("x", "`x`"),
    (24.0, "24"),
    ("C++", "c++"),
    ("24", "'24'"),
    ("yes", "Yes!"),
    ("a, b", "a b"),
    ("-2.5", "(-2.5)!"),
    ("5", "5?"),
]
OTHER_TEXTS = [
    ("(1,2]", "[1,2)"),
    ("[1, 2]", "(1, 2)"),
    ("{1; 2.5}", "(1; 2.5)"),
    ("(-2, 3)", "-2, 3"),
    ("-24", "24"),
    ("24", "-24"),
    ("2.5", "25"),
    ("1/2", "12"),
    ("$5", "5"),
    ("5%", "5"),
    ("5 km", "5"),
    ("1,5", "15"),
    ("1:3", "13"),
    (".5", "5"),
    ("C++", "C"),
    ("C#", "C"),
    ("a+b", "a-b"),
    ("a+b", "ab"),
    ("x^2", "x2"),
    ("1, 2", "12"),
    ("f(x)", "fx"),
    ("2*3", "23"),
    ("2**3", "23"),
    ("5!", "5"),
    ("-5", "5"),
    ("x<y", "x>y"),
    ("12:30", "1230"),
    ("5°", "5"),
    ("3-4", "34"),
    ("1-2", "12"),
    ("€5", "$5"),
    ("a_b", "ab"),
    ("~5", "5"),
    ("10^3", "103"),
    ("#5", "5"),
    ("@a", "a"),
    ("Mia", ""),
]
PLAIN = [
    ("So the answer is 42.", "42"),
    ("first 3, then 4", "4"),
    ("#### 42", "42"),
    ("3 #### 42 and 7", "42"),
    ("#### 1 #### 2", "2"),
    ("$1,234.50", "1234.50"),
    ("1,234,567", "1234567"),
    ("-5", "-5"),
    ("−5", "-5"),  # noqa: RUF001
    ("+5", "5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("x = -0.25", "-0.25"),
    (".5", "0.5"),
    ("48 + 24 = 72.", "72"),
    ("**42**", "42"),
    ("**Answer:** 42", "42"),
    ("**Answer:**42", "42"),
    ("\\boxed{42}", "42"),
    ("$\\boxed{42}$.", "42"),
    ("$42$", "42"),
    ("\\(x = 42\\)", "42"),
    ("Answer: 42", "42"),
    ("Answer:42", "42"),
    ("(42)", "42"),
    ("She has 72 clips in all.", "72"),
    ("Step 1\n42", "42"),
    ("So 7 boxes give 12 dollars", "12"),
    ("* 3", "3"),
    ("The answer is ** 3 **", "3"),
    ("x=5", "5"),
    ("=> 42", "42"),
    ("-> 42", "42"),
    ("(which is 42)", "42"),
    ("42\n\n", "42"),
    ("He earns 10 dollars per day", "10"),
    ("1. Add. 2. The answer is 5", "5"),
    ("-1,234", "-1234"),
    ("I got '42'", "42"),
    ("Total: $1,002", "1002"),
    ("#### -7", "-7"),
    ("### 12", "12"),
    ("ANSWER = 7", "7"),
    ("a total of 12", "12"),
    ("42 = total", "42"),
    ("\\[ 42 \\]", "42"),
]
NOT_PLAIN = [
    "5 * 3",
    "x * 3",
    "2 ** 3",
    "#### 3 * 5",
    "2 or 3",
    "-3 or 3",
    "2 and 3",
    "1,2",
    "7-5",
    "(7)-5",
    "50%",
    "50 %",
    "50 percent",
    "\\frac{1}{2}",
    "2:3",
    "2 : 3",
    "1/2",
    "1 / 2",
    "3 1/2",
    "1e3",
    "1.5e-3",
    "10^3",
    "10^{3}",
    "2 x 10^3",
    "2 × 10",  # noqa: RUF001
    "1.234,5",
    "12,34",
    "1 234",
    "1'234",
    "1_000",
    "2-3",
    "2 - 3",
    "2 to 3",
    "between 2 and 3",
    "from 2 to 3",
    "3 out of 4",
    "3 of 4",
    "(3, 4)",
    "[3, 4]",
    "(3,4)",
    "{1,2}",
    "2024-05-01",
    "05/01/2024",
    "12:30",
    "1.2.3",
    "5km",
    "5 km",
    "5kg",
    "5 m",
    "3 million",
    "5 dozen",
    "5k",
    "0x1F",
    "A5",
    "5th",
    "√2",
    "2π",
    "2 π",
    "5!",
    "5i",
    "±5",
    "<5",
    "> 5",
    "≥ 5",
    "48+24",
    "48 + 24",
    "half of 5 %",
    "3½",
    "5²",
    "minus 5",
    "negative 5",
    "no number",
    "",
    "7 #### none",
    "50\\%",
    "5°",
    "~5",
    "#5",
    "2**3",
    "5x",
    "5 x",
    "3 hundred",
    "5 per cent",
    "x^2 + 5",
    "1,2,3",
    "1, 2 + 3",
    "-5-",
    "--5",
    "5-year-old",
    "5 / x",
    "$5 million",
    "10 + x",
    "the answer is 5!",
]
EQUAL = [
    ("3:00", "3:00"),
    ("3:00 PM", "The answer is 3:00 PM."),
    ("1/2", "\\frac{1}{2}"),
    ("1/2", "0.5"),
    ("\\frac{1}{2}", "\\boxed{\\dfrac{1}{2}}"),
    ("50%", "0.5"),
    ("50%", "50\\%"),
    ("50%", "1/2"),
    ("50%", "50"),
    ("0.5", "50%"),
    ("5 km", "5 km"),
    ("5 km", "5"),
    ("5", "5 km"),
    ("5 km", "5 kilometers"),
    ("5\\text{ km}", "5km"),
    ("5 km", "$5\\text{ km}$"),
    ("[1,2]", "[1, 2]"),
    ("(1,2)", "(1,2)"),
    ("\\{1,2\\}", "{2, 1}"),
    ("1,2", "2,1"),
    ("(3,4)", "3,4"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("1000", "1e3"),
    ("1000", "1,000"),
    ("1,000", "10^3"),
    ("3.5", "3 1/2"),
    ("7/2", "3\\frac{1}{2}"),
    ("2:3", "4:6"),
    ("72", "48 + 24 = 72."),
    ("72", "She sold 72 clips in total."),
    ("#### 72", "The answer is 72."),
    ("72", "**Answer:** 72"),
    ("-24", "−24"),  # noqa: RUF001
    ("1/2", "The probability is 1/2."),
    ("50%", "so it is 50%."),
    ("\\sqrt{8}", "$2\\sqrt{2}$"),
    ("No solution", "no solution"),
    ("x>3", "(3,\\infty)"),
    ("[1,2]", "$1 \\le x \\le 2$"),
    ("\\pi", "π"),
    ("3 million", "3,000,000"),
    ("$5", "5 dollars"),
    ("$5", "$5.00"),
    ("90^\\circ", "90°"),
    ("90", "90 degrees"),
    ("y=2x+1", "$y = 1 + 2x$"),
    ("(-\\infty,2)", "(-∞, 2)"),
    ("2x+1", "The answer is $2x + 1$."),
    ("0.1", "0.10"),
    (["1", "2"], "2"),
    (24.0, "24"),
    (7, "Thus \\(x = 7\\)."),
    ("12", "The answer is 12, because 3 * 4 = 12."),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}"),
    ("18", "She makes 9 * 2 = $18 every day.\n#### 18"),
    ("3", "It takes 2/2=<<2/2=1>>1 bolt\nSo 3 in all\n#### 3"),
    ("1.5e-3", "0.0015"),
    ("Paris", "The answer is Paris."),
    ("5 m^2", "5 m²"),
]
DIFFERENT = [
    ("3:00 PM", "3:00 AM"),
    ("3:00", "4:00"),
    ("1/2", "\\frac{3}{2}"),
    ("2:3", "1:3"),
    ("2:3", "3"),
    ("50%", "0.5%"),
    ("50", "0.5"),
    ("50", "50%"),
    ("5 km", "5 m"),
    ("5 m^2", "5 m"),
    ("[1,2]", "(1,2)"),
    ("[1,2]", "[1,3]"),
    ("(3,4)", "4,3"),
    ("(1,2)", "\\{1,2\\}"),
    ("-24", "24"),
    ("24", "-24"),
    ("0.1", "0.1000001"),
    ("1,2", "12"),
    ("1,2", "1"),
    ("(2,3)", "x=2, y=4"),
    ("5", "(5,6)"),
    ("3", "from 2 to 3"),
    ("3", "between 2 and 3"),
    ("3", "3 million"),
    ("1/2", "2"),
    ("1/2", "1"),
    ("3 1/2", "1/2"),
    ("1e3", "1"),
    ("1e3", "3"),
    ("yes", "sey"),
    ("72", ""),
    ("72", "no idea"),
    ("72", "\\boxed{7"),
    ("5", "\\boxed{}"),
    ("x^2+y^2=4", "x^2+y^2=9"),
    ("4", "x^2+y^2=4"),
    ("2", "x=2 or x=3"),
    ("1", "9^{9^{9^{9^9}}}"),
    ("72", "720"),
    ("72", "73"),
    ("$5", "€5"),
    ("5", "5!"),
    ("(1,2,3)", "(1,3,2)"),
    ("12", "The answer is 11. 12 is wrong"),
]
CHOICES = [
    ("(A) is wrong. (B) is right.", "B"),
    ("(A) is wrong.", None),
    ("A) is not right", None),
    ("Answer: A is incorrect", None),
    ("Option A is wrong. The answer must be D.", "D"),
    ("I think A is wrong, so B", None),
    ("B is correct.", "B"),
    ("**B** is the correct answer because it is blue", "B"),
    ("I don't think B is correct.", None),
    ("If B is correct, the sky is green.", None),
    ("B because it is blue", "B"),
    ("B. Not all of them", "B"),
    ("\\boxed{B. Paris}", "B"),
    ("\\boxed{A dog}", None),
    ("#### B", "B"),
    ("The answer is \u201cB\u201d.", "B"),
    ("The answer is B\u2014Rome", "B"),
    ("The answer is B, i.e. Rome", "B"),
    ("The answer is B, a city.", "B"),
    ("The answer is B, I think.", "B"),
    ("The answer is A, and B is wrong.", "A"),
    ("The answer is A, B", ""),
    ("The answer is A.", "A"),
    ("(A)", "A"),
    ("A)", "A"),
    ("**B**", "B"),
    ("Answer: C", "C"),
    ("\\boxed{D}", "D"),
    ("\\boxed{\\text{D}}", "D"),
    ("A dog is an animal.", None),
    ("The answer is A dog.", None),
    ("The answer is a dog", None),
    ("A", "A"),
    ("B.", "B"),
    ("b", "B"),
    ("(b)", "B"),
    ("The correct answer is (C) Paris", "C"),
    ("The answer is B because it is blue", "B"),
    ("The answer is A because it is", "A"),
    ("The answer is B Paris", "B"),
    ("The answer is A or B", ""),
    ("A and B", ""),
    ("Both A and C", None),
    ("I think it is B", None),
    ("The answer is I", None),
    ("The answer is E.", None),
    ("E", None),
    ("A. Paris\nB. London\nC. Rome\nThe answer is B.", "B"),
    ("A. Paris\nB. London", ""),
    ("C. Rome", "C"),
    ("B) because", "B"),
    ("Answer: **B**", "B"),
    ("**Answer: B**", "B"),
    ("The answer is: B", "B"),
    ("the final answer is $\\boxed{C}$", "C"),
    ("The answer is A. Wait, the answer is C.", "C"),
    ("I choose D", "D"),
    ("So (D) is right", "D"),
    ("(A) or (B)", ""),
    ("Option C", "C"),
    ("The correct option is D", "D"),
    ("", None),
    ("no", None),
    ("Answer: A dog", None),
    ("Answer: A, because", "A"),
    ("Answer: A", "A"),
    ("answer is 'B'", "B"),
    ("A cat sat.\nAnswer: D", "D"),
    ("The answer is Apple", None),
    ("The answer isn't A", None),
    ("The answer is not A", None),
    ("`C`", "C"),
    ("- B", "B"),
    ("A: Paris", "A"),
    ("Answer is B, not C", "B"),
    ("D is the answer", None),
    ("A/B", ""),
    ("Answer: A/B", ""),
    ("The best choice is B.", "B"),
    ("Answer:\nB", "B"),
    ("Answer:\n\n(C)", "C"),
    ("[B]", "B"),
    ("A's dog", None),
    ("<answer>B</answer>", "B"),
    ("The answer is \\(B\\).", "B"),
    ("$B$", "B"),
    ("B\n\nBecause it is.", "B"),
    ("A\n\nA dog is an animal", "A"),
    ("I", None),
    ("the answer is C: Rome", "C"),
    ("The answer is D - Oslo", "D"),
]


@pytest.mark.parametrize(("answer", "response"), SAME_TEXTS)
def test_exact_match_ignores_what_structures_a_sentence(answer, response):
    assert score("exact_match", response, answer) == 1.0


@pytest.mark.parametrize(("answer", "response"), OTHER_TEXTS)
def test_exact_match_keeps_what_changes_the_meaning(answer, response):
    assert score("exact_match", response, answer) == 0.0


@pytest.mark.parametrize(
    ("response", "answer", "table", "expected"),
    [
        (" A red ball.", "a red ball", {"ignore_case": False}, 0.0),
        (" a red ball.", "a red ball", {"ignore_punctuation": False}, 0.0),
        ("] )", "] )", {"ignore_punctuation": False}, 1.0),
        ("red  ball", "a red ball", {}, 0.0),
        ("red  ball", "a red ball", {"ignore_articles": True}, 1.0),
        ("Mia. She", "Mia", {}, 0.0),
        ("\nMia\nShe", "Mia", {"part": "first_line"}, 1.0),
        ("So\nMia\n", "Mia", {"part": "last_line"}, 1.0),
        ("Tom", ["Mia", "Tom"], {}, 1.0),
        ("42", 42, {}, 1.0),
        ("yes", "no", {"wrong": -1.0}, -1.0),
        ("yes", "yes", {"right": 5.0}, 5.0),
    ],
)
def test_exact_match_settings(response, answer, table, expected):
    assert score("exact_match", response, answer, table) == expected


@pytest.mark.parametrize("answer", ["] )", "", "...", None, [], float("nan"), {"text": ["a"]}, ["!", None]])
@pytest.mark.parametrize("response", ["", "] )", "none"])
def test_an_answer_of_nothing_is_unreadable(answer, response):
    reward = resolve("exact_match")
    assert "the column 'answer' contains" in reward.unreadable({"answer": [answer]}, 1)[0]
    with pytest.raises(RewardError, match="in row 0 of the batch; expected"):
        score("exact_match", response, answer)
    assert score("exact_match", response, "...word") == 0.0


@settings(max_examples=40, deadline=None)
@given(st.text(), st.text())
def test_exact_match_never_raises_and_never_takes_an_empty_response(response, answer):
    reward = resolve("exact_match")
    if not reward.unreadable({"answer": [answer]}, 1):
        assert score("exact_match", "", answer) == 0.0
        assert score("exact_match", response, answer) in (0.0, 1.0)
        assert score("exact_match", answer, answer) == 1.0


@pytest.mark.parametrize(("text", "number"), PLAIN)
def test_plain_numbers(text, number):
    assert plain_number(text) == Decimal(number)


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_numbers_that_are_not_plain_are_not_read(text):
    assert plain_number(text) is None


@settings(deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3))
def test_any_number_is_found_with_and_without_commas(number):
    assert plain_number(f"So it is {number:f}.") == number
    assert plain_number(f"So 7 boxes give {number:,f} dollars") == number


@settings(deadline=None)
@given(st.text())
def test_plain_numbers_never_raise(text):
    assert plain_number(text) is None or plain_number(text).is_finite()


@pytest.mark.parametrize(
    ("response", "answer", "table", "expected"),
    [
        ("It is 42.", "6 * 7 = 42 #### 42", {}, 1.0),
        ("It is 42.0", 42, {}, 1.0),
        ("It is 42.1", 42.1, {}, 1.0),
        ("It is 42.1", 42, {}, 0.0),
        ("It is 42.1", 42, {"tolerance": 0.1}, 1.0),
        ("It is 42.11", 42, {"tolerance": 0.1, "wrong": -1.0}, -1.0),
        ("I do not know", 42, {"missing": -0.5}, -0.5),
        (r"\frac{1}{2}", 2, {"missing": -0.5}, -0.5),
        ("123456789012345678901", "123456789012345678902", {}, 0.0),
    ],
)
def test_numeric_answer_settings(response, answer, table, expected):
    assert score("numeric_answer", response, answer, table) == expected


@pytest.mark.parametrize("name", ["numeric_answer", "math_answer", "multiple_choice"])
@pytest.mark.parametrize("answer", ["", float("nan"), None, True, {"a": 1}])
def test_unreadable_answers(name, answer):
    if name == "math_answer":
        pytest.importorskip("math_verify", reason="needs the extra math")
    assert "the column 'answer' contains" in resolve(name).unreadable({"answer": [answer]}, 1)[0]
    with pytest.raises(RewardError, match="in row 0 of the batch; expected"):
        score(name, "1", answer)


@pytest.mark.parametrize("answer", [r"\frac{1}{2}", "2:3", "50%", "unknown", float("inf")])
def test_answers_that_are_no_plain_numbers(answer):
    assert "math_answer reads" in resolve("numeric_answer").unreadable({"answer": [answer]}, 1)[0]


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("numeric_answer", {"tolerance": -1.0}, "tolerance is -1"),
        ("math_answer", {"timeout": 0.0}, "timeout is 0"),
        ("multiple_choice", {"letters": "AAB"}, "letters is 'AAB'"),
    ],
)
def test_bad_settings(name, table, message):
    with pytest.raises(SettingsError, match=message):
        resolve(name, table)


@pytest.mark.parametrize("name", ["exact_match", "numeric_answer", "multiple_choice"])
def test_answers_need_their_column(name):
    with pytest.raises(RewardError, match=f"'{name}' needs the column 'answer'.*have answers; did you mean 'answers'"):
        resolve(name)(["p"], ["1"], {"answers": [1]})
    assert resolve(name, {"column": "solution"})(["p"], ["B 1"], {"solution": [1]}).scores[0] in (0.0, 1.0)


class TestMath:
    @pytest.fixture(autouse=True)
    def needs_math(self):
        pytest.importorskip("math_verify", reason="needs the extra math")

    @pytest.mark.parametrize(("answer", "response"), EQUAL)
    def test_equal(self, answer, response):
        assert score("math_answer", response, answer) == 1.0

    @pytest.mark.parametrize(("answer", "response"), DIFFERENT)
    def test_different(self, answer, response):
        assert score("math_answer", response, answer) == 0.0

    def test_a_time_limit_ends_a_comparison_and_the_next_one_works(self):
        begin = time.monotonic()
        assert score("math_answer", "9^{9^{9^{9^9}}}", r"\frac{1}{2}", {"timeout": 1.0}) == 0.0
        assert time.monotonic() - begin < 60
        assert score("math_answer", r"\frac{2}{4}", r"\frac{1}{2}") == 1.0

    def test_threads(self):
        results = {}

        def work(number):
            results[number] = score("math_answer", rf"\frac{{{number}}}{{6}}", rf"\frac{{{2 * number}}}{{12}}")

        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 5, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {1: 1.0, 5: 1.0, 7: 1.0}

    def test_processes(self):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            assert pool.submit(score, "math_answer", r"\sqrt{8}", r"2\sqrt{2}").result(timeout=300) == 1.0

    @settings(max_examples=25, deadline=None)
    @given(st.text(alphabet="0123456789{}[]()\\$^_%,.=+-/ fracboxedsqrt<>", max_size=40))
    def test_weird_texts_never_raise(self, text):
        assert score("math_answer", text, "7") in (0.0, 1.0)

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SettingsError, match=r"needs the package math-verify.*lmrl\[math\]"):
            resolve("math_answer")


@pytest.mark.parametrize(("response", "letter"), CHOICES)
def test_choices(response, letter):
    assert chosen_letter(response, "ABCD") == letter


@pytest.mark.parametrize(
    ("response", "answer", "table", "columns", "expected"),
    [
        ("(B)", "B", {}, {}, 1.0),
        ("(B)", "(b).", {}, {}, 1.0),
        ("(B)", 1, {}, {}, 1.0),
        ("(B)", "1", {}, {}, 1.0),
        ("(B)", 2, {"first": 1}, {}, 1.0),
        ("(C)", "B", {"wrong": -1.0}, {}, -1.0),
        ("A or B", "B", {"wrong": -1.0}, {}, -1.0),
        ("no idea", "B", {"missing": -0.5}, {}, -0.5),
        ("(B)", "Rome", {"choices": "options"}, {"options": ["Paris", "Rome"]}, 1.0),
        ("(C)", "Rome", {"choices": "options", "missing": -0.5}, {"options": ["Paris", "Rome"]}, -0.5),
        ("(B)", "B", {"choices": "options"}, {"options": {"text": ["x", "y"], "label": ["A", "B"]}}, 1.0),
        ("The answer is R.", "R", {"letters": "QRS"}, {}, 1.0),
    ],
)
def test_multiple_choice(response, answer, table, columns, expected):
    assert score("multiple_choice", response, answer, table, **columns) == expected


@pytest.mark.parametrize(
    ("answer", "table", "columns"),
    [
        ("Z", {}, {}),
        (30, {}, {}),
        (-1, {}, {}),
        ("Berlin", {"choices": "options"}, {"options": ["Paris", "Rome"]}),
        (2, {"choices": "options"}, {"options": ["Paris", "Rome"]}),
        ("A", {"choices": "options"}, {"options": None}),
    ],
)
def test_answers_that_name_no_option(answer, table, columns):
    row = {key: [value] for key, value in {"answer": answer, **columns}.items()}
    assert "the column 'answer' contains" in resolve("multiple_choice", table).unreadable(row, 1)[0]


@settings(deadline=None)
@given(st.text())
def test_multiple_choice_never_raises(text):
    assert chosen_letter(text, "ABCD") in ("A", "B", "C", "D", "", None)


@pytest.mark.parametrize("name", ["numeric_answer", "math_answer"])
def test_gsm8k(shared_data, name):
    """All 1,319 references are right, and none is after adding one, multiplying by ten or flipping the sign."""
    if name == "math_answer":
        pytest.importorskip("math_verify", reason="needs the extra math")
    rows = [json.loads(line) for line in (shared_data / "rl" / "gsm8k_test.jsonl").read_text().splitlines()]
    answers = [row["answer"] for row in rows]
    finals = [answer.split("####")[1].strip() for answer in answers]
    numbers = [Decimal(final.replace(",", "")) for final in finals]

    def right(responses):
        return resolve(name)([""] * len(rows), responses, {"answer": answers}).scores.sum()

    for form in ("{}", "I think it is ${}.", "So she has {} clips.", r"\boxed{{{}}}", "**Answer:** {}"):
        assert right([form.format(final) for final in finals]) == 1319
        for change in (lambda number: number + 1, lambda number: 10 * number, lambda number: -number):
            assert right([form.format(f"{change(number):,}") for number in numbers]) == 0
    assert right(answers) == 1319
