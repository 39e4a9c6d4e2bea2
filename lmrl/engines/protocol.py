"""Protocol of inference engines: published weights and requests in, responses out. Open this to write an engine.

``publish`` gives an engine weights, ``generate`` requests; it yields responses in order of completion. Requests may be
added while the engine works. ``lmrl.engines.batch`` makes columns of responses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import Any, Protocol

from torch import Tensor

from lmrl.engines.spec import FinishReason, SamplingSpec, finish_flags
from lmrl.text.card import TextCodec

POLICY = "policy"
"""The name of the model that learns."""


@dataclass(frozen=True)
class Request:
    """Request for one response.

    ``ids`` are the tokens to continue. ``seed`` determines the random numbers: that of token t is a function of
    (seed, t), so a response does not depend on other requests or on their order. ``id`` is unique among the requests of
    a source; ``group`` is the number of the prompt in it. ``model`` is the name that weights were published under.
    """

    ids: Sequence[int]
    spec: SamplingSpec
    seed: int
    group: int = 0
    id: int = 0
    model: str = POLICY


@dataclass(frozen=True)
class Response:
    """One sampled response.

    ``ids`` are the sampled tokens, an end token included. ``logprobs`` are those of the distribution that each token
    was drawn from, after temperature and restrictions. ``policy_version`` says which weights drew each token.
    """

    request: Request
    ids: list[int]
    logprobs: list[float]
    finish: FinishReason
    policy_version: list[int]

    @property
    def truncated(self) -> bool:
        """True if the response was cut off at a limit that withholds its score."""
        return bool(finish_flags(self.finish, self.request.spec.on_length)[1])


@dataclass(frozen=True)
class Capabilities:
    """Optional features of an engine; an optimizer that needs one that is missing is refused before sampling."""

    exact: bool = False
    """Its log-probabilities are those of the update's own forward pass up to rounding in float32. Otherwise, and in
    lower precision, one more pass computes ``rollout.proximal_logprobs``."""
    adapters: bool = False
    """It can hold the base model once and be given adapters."""
    logits_processors: bool = False
    """It drives the live module, so that whatever changes the module's logits changes what is drawn."""
    streaming: bool = False
    """It yields responses while it works on others."""
    several_models: bool = False
    """It holds several models at a time, by their names."""


class WeightSource(Protocol):
    """Weights to publish, in three forms; an engine takes the one that it can use.

    ``synchronous`` promises that the weights do not change while responses are being sampled: an engine may then use
    the live module without a copy. ``codec`` is the tokenizer, which stop strings need.
    """

    @property
    def synchronous(self) -> bool:
        """True if the weights do not change while responses are sampled."""
        ...

    @property
    def codec(self) -> TextCodec | None:
        """The tokenizer, if there is one."""
        ...

    def module(self) -> AbstractContextManager[Any]:
        """Give the live transformers module as it is to be sampled."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the module's tensors by name."""
        ...

    def write(self, folder: Path) -> None:
        """Write the module as a transformers folder."""
        ...


class RequestSource(Protocol):
    """Requests for an engine; more may come while it works. Safe to use from several threads."""

    @property
    def closed(self) -> bool:
        """True when no request is left and none will come."""
        ...

    def take(self, count: int | None = None) -> list[Request]:
        """Return the next requests, at most ``count``, or all that wait; an empty list if none does. Never blocks."""
        ...

    def wait(self) -> None:
        """Block until a request waits or the source is closed."""
        ...


class RequestQueue:
    """A ``RequestSource``: first in, first out. ``closed=True`` says that no request follows those given.

    >>> queue = RequestQueue([], closed=True)
    >>> queue.take(), queue.closed
    ([], True)
    """

    def __init__(self, requests: Iterable[Request] = (), closed: bool = False) -> None:
        self._waiting = deque(requests)
        self._complete = closed
        self._changed = Condition()

    def add(self, requests: Iterable[Request]) -> None:
        """Append requests. Raises ``ValueError`` after ``close``."""
        with self._changed:
            if self._complete:
                raise ValueError("the source of requests is closed; expected requests before close()")
            self._waiting.extend(requests)
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no request follows those that wait."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """True when no request is left and none will come."""
        with self._changed:
            return self._complete and not self._waiting

    def take(self, count: int | None = None) -> list[Request]:
        """Return the next requests, at most ``count``, or all that wait. Never blocks."""
        with self._changed:
            size = len(self._waiting) if count is None else min(count, len(self._waiting))
            return [self._waiting.popleft() for _ in range(size)]

    def wait(self) -> None:
        """Block until a request waits or the source is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._complete)


class Engine(Protocol):
    """Inference engine: samples responses to requests with the weights that were published last.

    One thread calls ``publish``.
    """

    @property
    def capabilities(self) -> Capabilities:
        """The optional features of this engine."""
        ...

    def publish(self, weights: WeightSource, version: int, model: str = POLICY) -> None:
        """Take weights for the requests that name ``model``; copies them unless the source is synchronous."""
        ...

    def generate(self, requests: RequestSource) -> Iterator[Response]:
        """Yield a response to every request of the source, in order of completion, until the source is closed."""
        ...

    def close(self) -> None:
        """Free what the engine holds: processes, connections. It starts anew when it is used again."""
        ...
