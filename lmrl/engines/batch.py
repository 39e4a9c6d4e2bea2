"""Whole batches: the queue of requests, requests for rows of prompts, all responses in order, and their columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import Condition
from typing import Any

import numpy as np
import torch

from lmrl.algorithms.rollout import Samples
from lmrl.algorithms.sequences import Sequences
from lmrl.engines.protocol import Engine, FinishReason, Request, Response, SamplingSpec, finish_flags
from lmrl.engines.weights import LiveWeights
from lmrl.errors import EngineError, PromptError, VocabularyError
from lmrl.seeds import response_seeds
from lmrl.text.card import ModelCard, TextCodec


class RequestQueue:
    """A ``RequestSource``: first in, first out.

    With ``closed=True`` no request follows those given.

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
        """Declare that no request follows."""
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


def requests_of(
    prompts: Sequence[Sequence[int]],
    spec: SamplingSpec,
    seed: int,
    groups: Sequence[int] | None = None,
    first_group: int = 0,
) -> list[Request]:
    """Return one request per row of token ids. The same seed gives the same responses.

    ``groups`` numbers the prompt of each row; without it, equal rows have one number. ``first_group`` is the number of
    prompts on the ranks before this one: seeds depend on a prompt's number in the whole batch.
    """
    if groups is None:
        numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(prompt) for prompt in prompts))}
        groups = [numbers[tuple(prompt)] for prompt in prompts]
    seeds = response_seeds(seed, groups, first_group)
    return [
        Request(prompt, spec, own, group, row)
        for row, (prompt, own, group) in enumerate(zip(prompts, seeds, groups, strict=True))
    ]


def generate_all(
    engine: Engine, requests: Sequence[Request], on_response: Callable[[Response], None] | None = None
) -> list[Response]:
    """Return the response to each request, in their order; ``on_response`` is called with each when it is complete.

    The requests have different ids. Raises ``EngineError`` if a request has no response, two, or a malformed one.
    """
    found: dict[int, Response] = {}
    asked = {request.id for request in requests}
    for response in engine.generate(RequestQueue(requests, closed=True)):
        _check(engine, response, asked)
        if response.request.id in found:
            raise EngineError(f"{type(engine).__name__} yielded two responses to request {response.request.id}")
        found[response.request.id] = response
        if on_response is not None:
            on_response(response)
    missing = [request.id for request in requests if request.id not in found]
    if missing:
        raise EngineError(
            f"{type(engine).__name__} yielded responses to {len(found)} of {len(requests)} requests; the first without "
            f"one is request {missing[0]}. Expected one response to each."
        )
    return [found[request.id] for request in requests]


def _check(engine: Engine, response: Response, asked: set[int]) -> None:
    """Raise ``EngineError`` for a response to no request, without an end, or with columns of different lengths."""
    number, counts = response.request.id, [len(response.ids), len(response.logprobs), len(response.policy_version)]
    problem = None
    if number not in asked:
        problem = "is not among the requests"
    elif len(set(counts)) != 1:
        problem = f"has {counts[0]} tokens, {counts[1]} log-probabilities and {counts[2]} versions"
    elif response.finish == FinishReason.NONE:
        problem = "has no finish reason"
    if problem:
        raise EngineError(
            f"{type(engine).__name__}: the response to request {number} {problem}; expected one log-probability and "
            "one version per token, and why the response ended"
        )


def require_sampled_ids(rows: Iterable[Sequence[int]], card: ModelCard) -> None:
    """Raise ``VocabularyError`` if an inference engine returns a token id that the model does not have."""
    highest = max((max(ids, default=0) for ids in rows), default=0)
    if highest >= card.vocab_size:
        raise VocabularyError(
            f"the inference engine returned the token id {highest}, and {card.path} has {card.vocab_size} ids; the "
            "engine serves a model with another vocabulary. Let it serve this model."
        )


def samples_of(responses: Sequence[Response], device: torch.device | str = "cpu") -> Samples:
    """Return one-turn responses as columns, one row each."""
    inputs = Sequences.of_pairs([(response.request.ids, response.ids) for response in responses], device)
    codes = torch.tensor([int(response.finish) for response in responses], device=device)
    cuts = torch.tensor([response.request.spec.on_length == "truncate" for response in responses], device=device)
    flags = zip(finish_flags(codes, "truncate"), finish_flags(codes, "terminate"), strict=True)
    terminated, truncated = (torch.where(cuts, one, other) for one, other in flags)
    return Samples(
        inputs=inputs,
        action_mask=inputs.action_mask(),
        sampler_logprobs=_column([response.logprobs for response in responses], np.float32, device),
        terminated=terminated,
        truncated=truncated,
        finish_reasons=codes.to(torch.int8),
        group=torch.tensor([response.request.group for response in responses], device=device),
        policy_version=_column([response.policy_version for response in responses], np.int64, device),
    )


def sample_batch(
    engine: Engine,
    model: Any,
    prompts: Sequence[Sequence[int]],
    spec: SamplingSpec,
    seed: int,
    codec: TextCodec | None = None,
    on_response: Callable[[Response], None] | None = None,
) -> Samples:
    """Publish a transformers module to the engine and sample one response to each row of token ids.

    Raises ``PromptError`` without prompts, for an empty one or one that fills the context.
    """
    if not prompts:
        raise PromptError("there are no prompts to sample from")
    engine.publish(LiveWeights(model, codec), 0)
    return samples_of(generate_all(engine, requests_of(prompts, spec, seed), on_response), model.device)


def _column(rows: Sequence[Sequence[float]], dtype: Any, device: torch.device | str) -> torch.Tensor:
    """Return rows of numbers, one per action, as a (B, T) tensor padded with 0."""
    column = np.zeros((len(rows), max(len(row) for row in rows)), dtype=dtype)
    for place, row in enumerate(rows):
        column[place, : len(row)] = row
    return torch.from_numpy(column).to(device)
