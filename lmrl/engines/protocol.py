"""Protocol of inference engines: published weights and requests in, responses out. Open this to write an engine.

``publish`` gives an engine weights, ``generate`` requests; it yields responses in order of completion. Requests may be
added while the engine works. ``lmrl.engines.batch`` makes columns of responses.

A request's ``SamplingSpec`` is what the sampler and the scorer both take. The log-probability that a sampler records is
that of the distribution it drew from, so whoever rescores a token must apply the same temperature and the same
restriction of the support. ``finish_codes`` is written once for the environment (numpy, token by token) and the engine
(torch, batched): it uses only ``|``, ``&``, ``~`` and comparisons, which numpy arrays and torch tensors share.
Importing this needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lmrl.algorithms.beside import POLICY
from lmrl.errors import SettingsError
from lmrl.text.card import TextCodec

if TYPE_CHECKING:
    from torch import Tensor

OnLength = Literal["terminate", "truncate"]


class FinishReason(IntEnum):
    """Reason why a response ended."""

    NONE = 0
    """The response goes on."""
    EOS = 1
    """An end-of-sequence token."""
    STOP = 2
    """A stop string."""
    LENGTH = 3
    """The limit of new tokens."""
    CONTEXT = 4
    """Prompt and response fill the context."""

    @property
    def label(self) -> str:
        """The lower-case name that ``info["finish_reason"]`` carries."""
        return self.name.lower()


@dataclass(frozen=True)
class SamplingSpec:
    """Distribution that tokens are drawn from, and when a response ends."""

    temperature: float = 1.0
    """Divisor of the logits; 0 is greedy decoding."""
    top_k: int = 0
    """Number of most probable tokens that are kept; 0 keeps all."""
    top_p: float = 1.0
    """Cumulative probability up to which the most probable tokens are kept; 1 keeps all."""
    min_p: float = 0.0
    """Smallest probability that is kept, as a fraction of the largest; 0 keeps all."""
    max_new_tokens: int = 64
    """Limit of sampled tokens per response."""
    eos_ids: tuple[int, ...] = ()
    """Token ids that end a response and are part of it."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a response and are not part of it."""
    forbidden_ids: tuple[int, ...] = ()
    """Token ids that are never drawn."""
    context_length: int | None = None
    """Limit of the tokens of prompt and response together, None for no limit."""
    on_length: OnLength = "terminate"
    """Meaning of the last two limits: "terminate" ends the episode and scores it, "truncate" withholds the score and
    lets the learner bootstrap."""

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise SettingsError(f"sampling.{name} is {getattr(self, name)!r}; expected {expected}")

        require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "a finite number >= 0")
        require(self.top_k >= 0, "top_k", "an integer >= 0 (0 switches it off)")
        require(0 < self.top_p <= 1, "top_p", "a number in (0, 1] (1 switches it off)")
        require(0 <= self.min_p < 1, "min_p", "a number in [0, 1) (0 switches it off)")
        require(self.max_new_tokens >= 1, "max_new_tokens", "an integer >= 1")
        require(self.on_length in ("terminate", "truncate"), "on_length", "'terminate' or 'truncate'")
        require(all(self.stop_strings), "stop_strings", "strings that are not empty")
        require(self.context_length is None or self.context_length >= 2, "context_length", "an integer >= 2 or none")

    @property
    def filters_support(self) -> bool:
        """True if top-k, top-p or min-p drop tokens, so that the support depends on the policy's own logits."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def log_distribution(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities that tokens are drawn from, -inf outside the support.

        Shapes: logits and result (..., V). The order is that of transformers: forbidden tokens, temperature, top-k,
        top-p, min-p, then renormalisation. Computed in float32. Temperature 0 puts all mass on the first maximum.
        """
        import torch

        logits = logits.float()
        if self.forbidden_ids:
            forbidden = torch.tensor(self.forbidden_ids, device=logits.device)
            logits = logits.index_fill(-1, forbidden, -math.inf)
        if self.temperature == 0:
            greedy = torch.full_like(logits, -math.inf)
            return greedy.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k > 0:
            kth = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if self.top_p < 1:
            logits = _keep_nucleus(logits, self.top_p)
        if self.min_p > 0:
            logprobs = logits.log_softmax(-1)
            floor = logprobs.amax(-1, keepdim=True) + math.log(self.min_p)
            logits = logits.masked_fill(logprobs < floor, -math.inf)
        return logits.log_softmax(-1)


def finish_codes(
    is_eos: Any, hit_stop: Any, new_tokens: Any, prompt_lengths: Any, max_new_tokens: Any, context_length: Any | None
) -> Any:
    """Return the ``FinishReason`` code of every row after its newest token.

    ``is_eos`` and ``hit_stop`` are bool (B,); ``new_tokens`` counts the sampled tokens including the newest,
    ``prompt_lengths`` the prompt's. All are numpy arrays or all torch tensors of integers; the two limits may be
    numbers. An EOS on the last allowed step is an EOS, a stop string comes next, then the token limit, then the full
    context.
    """
    at_length = new_tokens >= max_new_tokens
    at_context = (new_tokens + prompt_lengths) >= (context_length if context_length is not None else 2**62)
    open_after_eos = ~is_eos
    open_after_stop = open_after_eos & ~hit_stop
    open_after_length = open_after_stop & ~at_length
    return (
        is_eos * int(FinishReason.EOS)
        + (open_after_eos & hit_stop) * int(FinishReason.STOP)
        + (open_after_stop & at_length) * int(FinishReason.LENGTH)
        + (open_after_length & at_context) * int(FinishReason.CONTEXT)
    )


def finish_flags(codes: Any, on_length: Literal["terminate", "truncate"]) -> tuple[Any, Any]:
    """Return ``(terminated, truncated)``, bool (B,), of finish codes.

    EOS and stop strings terminate. The token limit and the full context terminate too by default, because value-based
    learners bootstrap whenever ``truncated`` is set and would count the score twice; ``on_length="truncate"`` makes
    them truncations, whose score is withheld.
    """
    ended_itself = (codes == int(FinishReason.EOS)) | (codes == int(FinishReason.STOP))
    cut_off = (codes == int(FinishReason.LENGTH)) | (codes == int(FinishReason.CONTEXT))
    if on_length == "terminate":
        return ended_itself | cut_off, cut_off & ended_itself
    return ended_itself, cut_off


@dataclass(frozen=True)
class Request:
    """Request for one response."""

    ids: Sequence[int]
    """Tokens to continue."""
    spec: SamplingSpec
    """Distribution to sample from."""
    seed: int
    """Seed of the random numbers: that of token t is a function of (seed, t), so a response does not depend on other
    requests or on their order."""
    group: int = 0
    """Number of the prompt in the source."""
    id: int = 0
    """Number that is unique among the requests of a source."""
    model: str = POLICY
    """Name that the weights were published under."""


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    request: Request
    """The request that it answers."""
    ids: list[int]
    """Sampled tokens, an end token included."""
    logprobs: list[float]
    """Log-probability of each token under the distribution that it was drawn from, after temperature and
    restrictions."""
    finish: FinishReason
    """Reason why the response ended."""
    policy_version: list[int]
    """Version of the weights that drew each token."""

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
    """It drives the live module, so that a change of the module's logits changes the tokens that are drawn."""
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
        """Return the live transformers module, as it is to be sampled, in a context."""
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
        """Free processes and connections. The engine starts again when it is next used."""
        ...


def _keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches ``top_p`` (Holtzman et al. 2020)."""
    import torch

    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
    before[..., 0] = 0  # the most likely token always stays
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(dropped, -math.inf)
