"""A judge's model behind any endpoint that speaks OpenAI's chat completions: asked side by side, with patience.

Uses the client library `openai` (extra `judge`). Repeating failed calls is done here and not there, so that each call
counts against the budget and Ctrl-C ends the wait.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from lmrl.errors import AnnotatorError, SettingsError
from lmrl.judges.asking import CUT_OFF, Answer, Budget
from lmrl.judges.request import advice_for, refused_field
from lmrl.judges.settings import AskingSettings

PASSING = (408, 409, 425, 429)
"""Statuses besides 500 and above after which the same question may be answered the next time."""
HOPELESS = {
    401: "it refuses the key; set judge.api_key_variable to the environment variable that holds a valid one",
    403: "it forbids the request; look at the key's rights and at judge.model",
    404: "it knows no such address or model; look at judge.base_url (it ends in /v1 mostly) and judge.model",
}
"""Statuses that the next question would meet as well."""
WHOLE_REASONS = ("", "stop", "eos", "eos_token", "end_turn", "stop_sequence")
"""Finish reasons of a reply that ended by itself. Servers that give none end their replies by themselves, too."""
CUT_REASONS = ("length", "max_tokens", "max_output_tokens", "model_length")
LONGEST_WAIT = 60.0
POLL = 0.2
"""Seconds between looks at whether to stop."""
CHARACTERS_PER_TOKEN = 4
"""Rough size of a token, for endpoints that do not say how many they used."""


class _OutOfBudget(Exception):
    """The budget, or the wish to stop, ended a question before it was answered."""


class _Hopeless(Exception):
    """No further question has a chance."""


class EndpointAsker:
    """Asks a chat model over HTTP."""

    def __init__(self, settings: AskingSettings, budget: Budget) -> None:
        if not settings.model:
            raise SettingsError("judge.model is empty; expected the name under which the endpoint knows its model")
        if importlib.util.find_spec("openai") is None:
            raise SettingsError(
                "judges at an endpoint need the client library openai, which is not installed: "
                'pip install "lmrl[judge]"'
            )
        self.settings, self.budget = settings, budget
        self._slots = threading.BoundedSemaphore(settings.concurrency)  # shared by calls of `ask` side by side
        self._failures, self._last_failure = 0, ""  # of all calls of `ask` together
        self._closed = ""
        """Reason for which the client was closed while other calls of `ask` had questions on their way."""
        self._key = _key(settings)
        self._client: Any = None
        self.fields = settings.request_fields()
        self.identity = json.dumps(
            {
                "endpoint": settings.base_url.rstrip("/"),
                "model": settings.model,
                "request": self.fields,
            },
            sort_keys=True,
        )

    def ask(self, questions: Sequence[str], should_stop: Callable[[], bool]) -> Iterator[tuple[int, Answer]]:
        """Yield answers as they come; at most ``concurrency`` questions are on their way at any time."""
        places = iter(range(len(questions)))
        running: dict[Future[Answer], int] = {}
        pool = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="lmrl-judge")
        try:
            while True:
                while len(running) < self.settings.concurrency and not should_stop() and not self.budget.spent:
                    place = next(places, None)
                    if place is None:
                        break
                    running[pool.submit(self._answer, questions[place], should_stop)] = place
                if not running:
                    return
                done, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in done:
                    place = running.pop(future)
                    try:
                        answer = future.result()
                    except _OutOfBudget:
                        continue
                    except _Hopeless as error:
                        self._closed = f"the judge at {self.settings.base_url} cannot be asked: {error}."
                        raise AnnotatorError(self._closed) from None
                    self._failures = self._failures + 1 if answer.text is None else 0
                    self._last_failure = answer.failure or self._last_failure
                    yield place, answer
                if self._failures >= self.settings.give_up_after:
                    self._closed = (
                        f"the judge at {self.settings.base_url} left {self._failures} questions in a row without an "
                        f"answer; the last one: {self._last_failure}. What it answered before is kept."
                    )
                    raise AnnotatorError(self._closed)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if running and self._client is not None:  # an error or a second Ctrl-C: nobody waits for these answers
                client, self._client = self._client, None  # before it is closed: other threads compare theirs with it
                client.close()

    def _answer(self, question: str, should_stop: Callable[[], bool]) -> Answer:
        """Put one question, again and again while it makes sense. Runs in a thread."""
        failure = ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                self.budget.count_retry()
            if not self.budget.take_call():
                raise _OutOfBudget
            with self._slots:
                answer, again, pause = self._call(question)
            if answer.text is not None or not again:
                return answer
            failure = answer.failure
            if attempt < self.settings.retries:
                waited = pause if pause is not None else self._backoff(attempt)
                until = time.monotonic() + min(waited, LONGEST_WAIT)
                while (left := until - time.monotonic()) > 0:
                    if should_stop():
                        raise _OutOfBudget
                    time.sleep(min(left, POLL))
        return Answer(None, f"{failure} ({self.settings.retries + 1} attempts)")

    def _call(self, question: str) -> tuple[Answer, bool, float | None]:
        """Return the answer, True if a failed one is worth another attempt, and the endpoint's Retry-After."""
        import openai

        client = self._connected()
        try:
            reply = client.chat.completions.create(
                model=self.settings.model,
                messages=[{"role": "user", "content": question}],
                extra_body=self.fields,
            )
        except openai.APIStatusError as error:
            status = error.status_code
            message = f"status {status}: {_excerpt(error.message)}"
            if status in HOPELESS:
                raise _Hopeless(f"{message}; {HOPELESS[status]}") from None
            refused = refused_field(error.body, error.message, self.fields) if status in (400, 422) else ""
            if refused:
                advice = advice_for(refused, self.settings.request, self.fields[refused])
                raise _Hopeless(f"{message}; the model refuses the field {refused!r}: {advice}") from None
            return Answer(None, message), status in PASSING or status >= 500, _retry_after(error.response)
        except (openai.APIConnectionError, RuntimeError) as error:  # timeouts; a client that another call has closed
            if self._closed and client is not self._client:
                raise AnnotatorError(self._closed) from None
            if isinstance(error, RuntimeError):
                raise
            return Answer(None, f"{type(error).__name__}: {_excerpt(str(error.__cause__ or error))}"), True, None
        except (openai.APIError, ValueError) as error:  # a body that is no JSON
            malformed = f"the answer is malformed ({type(error).__name__}: {_excerpt(str(error))})"
            return Answer(None, malformed), True, None
        try:
            answer = reply_of(reply.choices[0])
        except (AttributeError, IndexError, TypeError):
            return Answer(None, f"the answer is malformed: {_excerpt(repr(reply))}"), True, None
        self.budget.add_tokens(*_used(getattr(reply, "usage", None), question, answer.text or ""))
        return answer, False, None

    def _connected(self) -> Any:
        if self._client is None:
            import openai

            self._client = openai.OpenAI(
                base_url=self.settings.base_url,
                api_key=self._key,
                timeout=self.settings.timeout,
                max_retries=0,
            )
        return self._client

    def _backoff(self, attempt: int) -> float:
        # At random, so that questions refused together do not all come back together.
        return self.settings.backoff * 2.0**attempt * random.uniform(0.75, 1.0)


def _used(usage: Any, question: str, reply: str) -> tuple[int, int]:
    """Return the tokens of question and reply, estimated where the endpoint does not count them."""
    asked, said = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    if isinstance(asked, int) and isinstance(said, int):
        return asked, said
    total = getattr(usage, "total_tokens", None)
    if isinstance(total, int):
        return total, 0
    return len(question) // CHARACTERS_PER_TOKEN, len(reply) // CHARACTERS_PER_TOKEN


def reply_of(choice: Any) -> Answer:
    """Return the text of a chat completion's choice, and why it must not be read if it is not a whole reply.

    Reasoning in a field of its own is not part of the reply. A refusal or an empty reply is an answer: the same
    question would get it again.
    """
    message = choice.message
    text = _content(message.content)
    reason = str(choice.finish_reason or "").lower()
    if reason in CUT_REASONS:
        return Answer(text, unreadable=CUT_OFF)
    if getattr(message, "tool_calls", None) or getattr(message, "function_call", None):
        return Answer(text, unreadable="a tool call")
    if reason not in WHOLE_REASONS:
        return Answer(text, unreadable=f"finish_reason {reason}")
    if getattr(message, "refusal", None):
        return Answer(text, unreadable="a refusal")
    return Answer(text)


def _content(content: Any) -> str:
    """Return a message's text; some servers send it as a list of parts."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _key(settings: AskingSettings) -> str:
    if not settings.api_key_variable:
        return "none"  # the library insists on some text; servers of one's own ignore it
    key = os.environ.get(settings.api_key_variable, "")
    if not key:
        raise SettingsError(
            f"judge.api_key_variable names {settings.api_key_variable}, but this environment variable is not set; "
            f"set it to the endpoint's key: export {settings.api_key_variable}=..."
        )
    return key


def _retry_after(response: Any) -> float | None:
    try:
        return max(0.0, float(response.headers.get("retry-after")))
    except (TypeError, ValueError, AttributeError):  # none, or a date
        return None


def _excerpt(text: str, width: int = 200) -> str:
    return text if len(text) <= width else f"{text[:width]}..."
