"""A judge's model behind any endpoint that speaks OpenAI's chat completions: asked side by side, with patience.

Uses the client library `openai` (extra `judge`). Repeating failed calls is done here and not there, so that each call
counts against the budget and Ctrl-C ends the wait.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from lmrl.errors import AnnotatorError, SettingsError
from lmrl.preferences.asking import Answer, Budget
from lmrl.preferences.judge_settings import JudgeSettings

PASSING = (408, 409, 425, 429)
"""Statuses besides 500 and above after which the same question may be answered the next time."""
HOPELESS = {
    401: "it refuses the key; set judge.api_key_variable to the environment variable that holds a valid one",
    403: "it forbids the request; look at the key's rights and at judge.model",
    404: "it knows no such address or model; look at judge.base_url (it ends in /v1 mostly) and judge.model",
}
"""Statuses that the next question would meet as well."""
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

    def __init__(self, settings: JudgeSettings, budget: Budget) -> None:
        if not settings.model:
            raise SettingsError("judge.model is empty; expected the name under which the endpoint knows its model")
        if importlib.util.find_spec("openai") is None:
            raise SettingsError(
                "judges at an endpoint need the client library openai, which is not installed: "
                'pip install "lmrl[judge]"'
            )
        self.settings, self.budget = settings, budget
        self._key = _key(settings)
        self._client: Any = None
        self.identity = json.dumps(
            {
                "endpoint": settings.base_url.rstrip("/"),
                "model": settings.model,
                "temperature": settings.temperature,
                "max_answer_tokens": settings.max_answer_tokens,
            }
        )

    def ask(self, questions: Sequence[str], should_stop: Callable[[], bool]) -> Iterator[tuple[int, Answer]]:
        """Yield answers as they come; at most ``concurrency`` questions are on their way at any time."""
        places = iter(range(len(questions)))
        running: dict[Future[Answer], int] = {}
        failures, last_failure = 0, ""
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
                        raise AnnotatorError(
                            f"the judge at {self.settings.base_url} cannot be asked: {error}"
                        ) from None
                    failures = failures + 1 if answer.text is None else 0
                    last_failure = answer.failure or last_failure
                    yield place, answer
                if failures >= self.settings.give_up_after:
                    raise AnnotatorError(
                        f"the judge at {self.settings.base_url} left {failures} questions in a row without an answer; "
                        f"the last one: {last_failure}. What it answered before is kept."
                    )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if running and self._client is not None:  # an error or a second Ctrl-C: nobody waits for these answers
                self._client.close()
                self._client = None

    def _answer(self, question: str, should_stop: Callable[[], bool]) -> Answer:
        """Put one question, again and again while it makes sense. Runs in a thread."""
        failure = ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                self.budget.count_retry()
            if not self.budget.take_call():
                raise _OutOfBudget
            text, failure, again, pause = self._call(question)
            if text is not None:
                return Answer(text)
            if not again:
                return Answer(None, failure)
            if attempt < self.settings.retries:
                waited = pause if pause is not None else self._backoff(attempt)
                until = time.monotonic() + min(waited, LONGEST_WAIT)
                while (left := until - time.monotonic()) > 0:
                    if should_stop():
                        raise _OutOfBudget
                    time.sleep(min(left, POLL))
        return Answer(None, f"{failure} ({self.settings.retries + 1} attempts)")

    def _call(self, question: str) -> tuple[str | None, str, bool, float | None]:
        """Return (answer, what went wrong, whether to try again, seconds the endpoint wants to be left alone)."""
        import openai

        try:
            reply = self._connected().chat.completions.create(
                model=self.settings.model,
                messages=[{"role": "user", "content": question}],
                temperature=self.settings.temperature,
                max_tokens=self.settings.max_answer_tokens,
            )
        except openai.APIStatusError as error:
            status = error.status_code
            message = f"status {status}: {_excerpt(error.message)}"
            if status in HOPELESS:
                raise _Hopeless(f"{message}; {HOPELESS[status]}") from None
            return None, message, status in PASSING or status >= 500, _retry_after(error.response)
        except openai.APIConnectionError as error:  # timeouts are among these
            return None, f"{type(error).__name__}: {_excerpt(str(error.__cause__ or error))}", True, None
        except (openai.APIError, ValueError) as error:  # a body that is no JSON
            return None, f"the answer is malformed ({type(error).__name__}: {_excerpt(str(error))})", True, None
        return self._read(question, reply)

    def _read(self, question: str, reply: Any) -> tuple[str | None, str, bool, float | None]:
        try:
            text = reply.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            return None, f"the answer is malformed: {_excerpt(repr(reply))}", True, None
        used = getattr(getattr(reply, "usage", None), "total_tokens", None)
        if not isinstance(used, int):
            used = (len(question) + len(str(text or ""))) // CHARACTERS_PER_TOKEN
        self.budget.add_tokens(used)
        # A refusal or an empty answer is an answer, one without a verdict: asking again would bring it again.
        return text if isinstance(text, str) else "", "", False, None

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


def _key(settings: JudgeSettings) -> str:
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
