"""Settings of judges; importable without torch and without a client library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lmrl.config.unread import only_if
from lmrl.errors import SettingsError
from lmrl.judges.request import EXTRA_BODY, request_fields

_LOWEST = {
    "max_answer_tokens": 1,
    "concurrency": 1,
    "give_up_after": 1,
    "retries": 0,
    "max_calls": 0,
    "max_tokens": 0,
    "max_cost": 0,
    "prompt_price": 0,
    "reply_price": 0,
    "temperature": 0,
    "backoff": 0,
}


@dataclass
class AskingSettings:
    """Language model that is asked, the requests to it, and their limits."""

    model: str = ""
    """A local model's folder or hub id; with base_url, the name under which the endpoint knows its model."""
    device: Literal["auto", "cpu"] = "auto"
    """Device of a local model; auto takes a GPU where there is one."""
    trust_remote_code: bool = False
    """Run Python code that a local model comes with; read that code first."""
    base_url: str = ""
    """Address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; empty asks a local model."""
    api_key_variable: str = ""
    """Name of the environment variable that holds the endpoint's key; empty: no key is sent. No file keeps the key."""
    answer: Literal["auto", "logprobs", "text"] = "auto"
    """Form of a local model's reply. logprobs: the probabilities of the possible verdicts or grades; text: the model
    writes, and its reply is read; auto: logprobs. Endpoints always write."""
    temperature: float = 0.0
    """Temperature of written replies."""
    max_answer_tokens: int = 256
    """Limit of a written reply in tokens. A reply that reaches it is unreadable."""
    request: dict[str, Any] = field(default_factory=dict)
    """Fields of the request to an endpoint, such as max_completion_tokens = 500, reasoning_effort = "low", seed = 1 or
    a table extra_body. A field named temperature or max_tokens replaces the setting. drop = ["temperature"] leaves
    fields out."""
    concurrency: int = 4
    """Questions put to an endpoint at the same time."""
    timeout: float = 60.0
    """Seconds to wait for an endpoint's answer."""
    retries: int = 5
    """Times that a question is put again after an error that may pass: no connection, timeout, status 408, 409, 429 or
    500 and above."""
    backoff: float = 1.0
    """Seconds before the first such repetition; each further one waits twice as long, up to a minute, with up to a
    quarter taken off at random. An endpoint's Retry-After is heeded."""
    give_up_after: int = 5
    """Questions in a row without an answer, all repetitions included, after which an endpoint is taken to be gone."""
    max_calls: int = 0
    """Questions that may be put to the model in this run, repetitions included; 0 sets no limit."""
    max_tokens: int = 0
    """Tokens, of questions and answers, that may be spent in this run; 0 sets no limit. Questions already on their way
    are still answered."""
    max_cost: float = 0.0
    """Price of the tokens of this run at most, in the currency of prompt_price and reply_price; 0 sets no limit."""
    prompt_price: float = 0.0
    """Price of a million tokens of questions."""
    reply_price: float = 0.0
    """Price of a million tokens of replies, reasoning included."""
    cache: str = "runs/judge-cache.sqlite"
    """File that keeps every answer, so that no question is put twice; empty keeps none."""

    def __post_init__(self) -> None:
        for name, bound in _LOWEST.items():
            if not getattr(self, name) >= bound:
                raise SettingsError(f"judge.{name} is {getattr(self, name)}; expected a number of at least {bound}")
        if not self.timeout > 0:
            raise SettingsError(f"judge.timeout is {self.timeout}; expected a number of seconds above 0")
        if self.max_cost and not self.prompt_price and not self.reply_price:
            raise SettingsError(
                f"judge.max_cost is {self.max_cost:g}, but tokens have no price; expected judge.prompt_price and "
                "judge.reply_price, per million tokens. Set them."
            )
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise SettingsError(
                f"judge.base_url is {self.base_url!r}; expected an address such as http://localhost:8000/v1"
            )
        if self.base_url and self.answer == "logprobs":
            raise SettingsError(
                'judge.answer is "logprobs", but endpoints do not all tell probabilities; set judge.answer = "text"'
            )
        if self.request and not self.base_url:
            raise SettingsError(
                f"judge.request sets {', '.join(self.request)}, but judge.base_url is empty; expected an endpoint, "
                "because a local model gets no request. Set judge.base_url, or remove judge.request."
            )
        self.request_fields()

    def request_fields(self) -> dict[str, Any]:
        """Return the fields of a request beside model and messages."""
        return request_fields(self.request, self.temperature, self.max_answer_tokens)

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        endpoint = ("api_key_variable", "concurrency", "timeout", "retries", "backoff", "give_up_after")
        written = ("temperature", "max_answer_tokens")
        found = only_if(bool(self.base_url), "base_url set", *endpoint)
        found |= only_if(not self.base_url, "base_url left out", "device", "answer")
        found |= only_if(bool(self.base_url) or self.answer == "text", "answer=text", *written)
        for name, field_name in (("temperature", "temperature"), ("max_answer_tokens", "max_tokens")):
            own = field_name in self.request or field_name in self.request.get(EXTRA_BODY, {})
            sent = not own and field_name in self.request_fields()
            found |= only_if(sent or not self.base_url, f"a request that does not replace or drop {field_name}", name)
        return found


@dataclass
class JudgeSettings(AskingSettings):
    """Judge model for pairs of responses: how it is asked, and its cost limits."""

    criterion: str = "helpful, honest and harmless"
    """Criterion of the comparison, put into the question."""
    template: str = ""
    """A text file with a question of your own: {prompt}, {first}, {second} and {criterion} stand for what is asked."""
    verdict: str = ""
    """A regular expression whose group 1 is A, B or TIE in the judge's reply; its last match counts. Empty: "Verdict:
    A" and the other forms that docs/preferences.md lists."""
    swap: bool = True
    """Ask each pair in both orders and call it a tie where the two answers differ. Off asks once, in a fixed random
    order: half the cost, and a preference for a position goes unnoticed."""
    max_pairs: int = 0
    """Pairs asked about per prompt at the most; 0 asks about all n(n-1)/2. At least n-1 are needed to rank n."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_pairs < 0:
            raise SettingsError(f"judge.max_pairs is {self.max_pairs}; expected a number of at least 0")
