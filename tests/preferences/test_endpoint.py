"""Judges behind a real HTTP server: errors that pass and errors that do not, bad bodies, slowness, budgets, keys."""

import json
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lmrl.annotators import AnnotatorSettings, Comparison, build_annotator
from lmrl.annotators.annotators import Unanswered
from lmrl.errors import AnnotatorError, SettingsError
from lmrl.judges.asking import Budget
from lmrl.judges.endpoint import EndpointAsker
from lmrl.judges.settings import AskingSettings, JudgeSettings

pytest.importorskip("openai", reason="the client library openai is not installed (it is in the extra judge)")
PAIR = Comparison("Tell me a story.", "Tell me a story.", ("long and good", "short"))
TOO_MANY = (429, '{"error": {"message": "slow down"}}', {"retry-after": "0"})
BROKEN = (500, "<html>oops</html>", {"content-type": "text/html"})


def make(endpoint, **changes):
    settings = {"model": "m", "base_url": endpoint.url, "cache": "", "backoff": 0.01, "concurrency": 2, **changes}
    return build_annotator(AnnotatorSettings(kind="judge", judge=JudgeSettings(**settings)))


def many(count):
    return [Comparison(f"p{i}", f"p{i}", ("xx" if i % 2 else "x", "y")) for i in range(count)]


def test_a_pair_is_asked_in_both_orders(endpoint):
    annotator = make(endpoint)
    assert annotator.judge([PAIR])[0].ranks == (0, 1)
    assert len(endpoint.questions) == 2 and len(set(endpoint.questions)) == 2
    body = endpoint.bodies[0]
    assert body["model"] == "m" and body["temperature"] == 0 and body["max_tokens"] == 256
    assert "Tell me a story." in endpoint.questions[0] and "helpful, honest and harmless" in endpoint.questions[0]
    assert annotator.counts["calls"] == 2 and annotator.counts["tokens"] == sum(map(len, endpoint.questions))


@pytest.mark.parametrize("mishap", [TOO_MANY, BROKEN, (503, "", {}), (200, "no json", {}), (200, "{}", {})])
def test_errors_that_pass_are_survived(endpoint, mishap):
    endpoint.mishap = lambda number: mishap if number % 2 else None
    annotator = make(endpoint, concurrency=1)
    assert [one.ranks for one in annotator.judge(many(3))] == [(0, 0), (0, 1), (0, 0)]
    assert annotator.counts["retries"] == 6 and annotator.counts["calls"] == 12 == len(endpoint.questions)


def test_an_endpoint_that_stays_broken_is_given_up_and_says_why(endpoint):
    endpoint.mishap = lambda number: BROKEN if number > 4 else None
    annotator = make(endpoint, retries=1, concurrency=1, give_up_after=3)
    answers = {}
    with pytest.raises(AnnotatorError, match=r"3 questions in a row .*status 500.*2 attempts"):
        for index, answer in annotator.stream(many(6)):
            answers[index] = answer
    assert [answers[i].ranks for i in (0, 1)] == [(0, 0), (0, 1)], "what was answered before is kept"
    assert answers[2] == Unanswered("failed")


def test_a_question_that_is_refused_costs_only_itself(endpoint):
    endpoint.mishap = lambda number: (400, '{"error": {"message": "too long"}}', {}) if number == 1 else None
    annotator = make(endpoint, concurrency=1)
    judged = annotator.judge(many(2))
    assert judged[0] is None and judged[1].ranks == (0, 1)
    assert annotator.counts["failed"] == 1 and annotator.counts["retries"] == 0


@pytest.mark.parametrize(("status", "advice"), [(401, "api_key_variable"), (403, "rights"), (404, "base_url")])
def test_hopeless_errors_stop_at_once(endpoint, status, advice):
    endpoint.mishap = lambda number: (status, '{"error": {"message": "no"}}', {})
    with pytest.raises(AnnotatorError, match=f"status {status}.*{advice}"):
        make(endpoint, concurrency=1).judge(many(5))
    assert len(endpoint.questions) == 1


def test_nobody_there(endpoint):
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(AnnotatorError, match="APIConnectionError"):
        make(endpoint, retries=1, give_up_after=2).judge(many(4))


def test_slow_answers_are_asked_for_again(endpoint):
    endpoint.delay = 0.6
    annotator = make(endpoint, timeout=0.15, retries=1, give_up_after=1, concurrency=1)
    with pytest.raises(AnnotatorError, match="APITimeoutError"):
        annotator.judge([PAIR])
    assert annotator.counts["calls"] == 2


def test_retry_after_is_heeded(endpoint):
    endpoint.mishap = lambda number: (429, "{}", {"retry-after": "0.3"}) if number == 1 else None
    start = time.monotonic()
    assert make(endpoint, concurrency=1).judge([PAIR])[0].ranks == (0, 1)
    assert time.monotonic() - start >= 0.3


def test_answers_without_a_verdict_are_counted_and_not_repeated(endpoint):
    endpoint.mishap = lambda number: (200, endpoint.completion("I cannot choose."), {})
    annotator = make(endpoint)
    assert annotator.judge(many(2)) == [None, None]
    assert annotator.counts["unreadable"] == 4 == annotator.counts["calls"]


def test_an_answer_that_is_null_is_unreadable(endpoint):
    endpoint.mishap = lambda number: (200, endpoint.completion(None), {})
    annotator = make(endpoint)
    assert annotator.judge([PAIR]) == [None] and annotator.counts["unreadable"] == 2


def test_questions_go_out_side_by_side_but_not_more_than_allowed(endpoint):
    endpoint.delay = 0.05
    annotator = make(endpoint, concurrency=4)
    annotator.judge(many(10))
    assert 2 <= endpoint.most_active <= 4 and len(endpoint.questions) == 20


def test_a_budget_of_calls_stops_cleanly_and_the_cache_carries_on(endpoint, tmp_path):
    cache = str(tmp_path / "cache.sqlite")
    annotator = make(endpoint, max_calls=5, cache=cache)
    judged = annotator.judge(many(4))
    assert len(endpoint.questions) == 5 == annotator.counts["calls"]
    assert sum(one is not None for one in judged) == 2 and annotator.stopped == "max_calls = 5 is reached"
    again = make(endpoint, cache=cache)
    assert all(again.judge(many(4))) and again.stopped == ""
    assert len(endpoint.questions) == 8 == len(set(endpoint.questions)), "a question was put twice"


def test_repetitions_count_against_the_budget(endpoint):
    endpoint.mishap = lambda number: TOO_MANY
    annotator = make(endpoint, max_calls=4, concurrency=1, retries=10)
    assert annotator.judge([PAIR]) == [None]
    assert len(endpoint.questions) == 4 and "max_calls" in annotator.stopped


@pytest.mark.parametrize("usage", [True, False])
def test_a_budget_of_tokens(endpoint, usage):
    endpoint.usage = usage  # without a count from the endpoint it is estimated
    annotator = make(endpoint, max_tokens=300 if usage else 75, concurrency=1)
    judged = annotator.judge(many(4))
    assert "max_tokens" in annotator.stopped and judged[-1] is None and len(endpoint.questions) < 8


def test_the_key_comes_from_the_environment_and_stays_there(endpoint, tmp_path, monkeypatch):
    cache = tmp_path / "cache.sqlite"
    monkeypatch.setenv("MY_KEY", "very-secret-key")
    make(endpoint, api_key_variable="MY_KEY", cache=str(cache)).judge([PAIR])
    assert set(endpoint.keys) == {"Bearer very-secret-key"}
    assert b"very-secret" not in cache.read_bytes()
    assert sqlite3.connect(cache).execute("SELECT count(*) FROM replies").fetchone() == (2,)
    monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
    endpoint.keys.clear()
    make(endpoint).judge([PAIR])
    assert set(endpoint.keys) == {"Bearer none"}, "a key went to an endpoint that it was not named for"


def test_a_key_that_is_not_set_is_refused_before_anything_is_asked(endpoint, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(SettingsError, match="export MY_KEY="):
        make(endpoint, api_key_variable="MY_KEY")
    with pytest.raises(SettingsError, match=r"judge\.model is empty"):
        make(endpoint, model="")


def test_without_the_client_library_the_extra_is_named(endpoint):
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'openai' else find(name, *rest)\n"
        "from lmrl.annotators import *\nfrom lmrl.judges.settings import JudgeSettings\n"
        f"settings = JudgeSettings(model='m', base_url='{endpoint.url}')\n"
        "build_annotator(AnnotatorSettings(kind='judge', judge=settings))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "lmrl[judge]"' in done.stderr and done.returncode


def test_stopping_keeps_what_is_on_its_way(endpoint):
    endpoint.delay = 0.05
    annotator = make(endpoint, concurrency=2)
    answers, stop = {}, []
    for index, answer in annotator.stream(many(20), lambda: bool(stop)):
        answers[index] = answer
        stop.append(True)
    assert 1 <= len(answers) <= 2 and len(endpoint.questions) <= 6


def reply(endpoint, text, finish="stop", **message):
    """Return a mishap that answers with a chat completion of these fields."""
    body = json.loads(endpoint.completion(text))
    body["choices"][0]["finish_reason"] = finish
    body["choices"][0]["message"] |= message
    return 200, json.dumps(body), {}


CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("text", "finish", "message", "reason"),
    [
        ("Verdict: A", "length", {}, "cut off at its limit"),
        ("I think Verdict: A", "max_tokens", {}, "cut off at its limit"),
        ("", "length", {"reasoning_content": "Verdict: A"}, "cut off at its limit"),
        (None, "stop", {"reasoning_content": "Verdict: A"}, "no text"),
        ("<think>Verdict: A", "stop", {}, "unfinished reasoning"),
        ("Verdict: A", "content_filter", {}, "finish_reason content_filter"),
        (None, "tool_calls", {"tool_calls": CALL}, "a tool call"),
        ("Verdict: A", "stop", {"tool_calls": CALL}, "a tool call"),
        (None, "stop", {"refusal": "I cannot help."}, "a refusal"),
        ("Verdict: A", "abort", {}, "finish_reason abort"),
        ("Verdict: a close call", "stop", {}, "no value behind the label"),
    ],
)
def test_replies_that_are_not_whole_are_counted_with_their_reason(endpoint, tmp_path, text, finish, message, reason):
    endpoint.mishap = lambda number: reply(endpoint, text, finish, **message)
    cache = str(tmp_path / "cache.sqlite")
    for calls in (2, 0):  # also when the reply comes from the cache
        annotator = make(endpoint, cache=cache)
        assert annotator.judge([PAIR]) == [None]
        assert annotator.counts["unreadable"] == 2 == annotator.counts[f"unreadable ({reason})"]
        assert annotator.counts["calls"] == calls


@pytest.mark.parametrize("finish", ["stop", None, "eos", "end_turn", "STOP"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Verdict: TIE", {"reasoning_content": "Verdict: A"}),
        ("<think>Verdict: A</think>\n\nVerdict: TIE", {}),
        ([{"type": "text", "text": "Verdict:"}, {"type": "text", "text": " TIE"}], {}),
    ],
)
def test_whole_replies_are_read_without_their_reasoning(endpoint, finish, text, message):
    endpoint.mishap = lambda number: reply(endpoint, text, finish, **message)
    assert make(endpoint).judge([PAIR])[0].ranks == (0, 0)


def picky(endpoint, *refused):
    """Return mishaps of an endpoint that refuses some fields, in OpenAI's words."""

    def mishap(number):
        for name in refused:
            if name in endpoint.bodies[number - 1]:
                error = {
                    "message": f"Unsupported parameter: '{name}' is not supported with this model.",
                    "type": "invalid_request_error",
                    "param": name,
                    "code": "unsupported_parameter",
                }
                return 400, json.dumps({"error": error}), {}
        return None

    return mishap


def test_a_model_that_refuses_max_tokens_and_temperature_can_be_used(endpoint):
    endpoint.mishap = picky(endpoint, "max_tokens", "temperature")
    with pytest.raises(AnnotatorError, match=r"refuses the field 'max_tokens'.*judge\.request\.max_completion_tokens"):
        make(endpoint, concurrency=1).judge(many(3))
    assert len(endpoint.questions) == 1, "the next question would be refused as well"
    request = {"max_completion_tokens": 500, "extra_body": {"reasoning_effort": "low"}}
    with pytest.raises(AnnotatorError, match=r'judge\.request\.drop = \["temperature"\]'):
        make(endpoint, request=request).judge([PAIR])
    annotator = make(endpoint, request={**request, "drop": ["temperature"]})
    assert annotator.judge([PAIR])[0].ranks == (0, 1)
    body = endpoint.bodies[-1]
    assert set(body) == {"model", "messages", "max_completion_tokens", "reasoning_effort"}


def test_the_request_is_part_of_the_cache_key(endpoint, tmp_path):
    cache = str(tmp_path / "cache.sqlite")
    for request, asked in (({}, 2), ({}, 2), ({"seed": 1}, 4), ({"drop": ["temperature"]}, 6), ({"seed": 1}, 6)):
        make(endpoint, cache=cache, request=request).judge([PAIR])
        assert len(endpoint.questions) == asked


def test_a_limit_of_money(endpoint):
    annotator = make(endpoint, max_cost=1e-3, prompt_price=1.0, concurrency=1)  # a microunit per token of a question
    annotator.judge(many(4))
    assert "max_cost = 0.001 is reached" in annotator.stopped and len(endpoint.questions) < 8
    with pytest.raises(SettingsError, match="tokens have no price"):
        make(endpoint, max_cost=1.0)


def test_calls_side_by_side_all_end_with_the_judges_failure(endpoint):
    """The call that gives up closes the client; the other calls name the judge's failure, not the closed client."""
    endpoint.mishap = lambda number: BROKEN
    asker = EndpointAsker(
        AskingSettings(model="m", base_url=endpoint.url, backoff=0.01, concurrency=2, retries=1, give_up_after=2),
        Budget(),
    )

    def failure(name):
        with pytest.raises(AnnotatorError) as raised:
            list(asker.ask([f"{name} {number}" for number in range(8)], lambda: False))
        return str(raised.value)

    with ThreadPoolExecutor(6) as pool:
        assert [text for text in pool.map(failure, range(6)) if "status 500" not in text] == []
