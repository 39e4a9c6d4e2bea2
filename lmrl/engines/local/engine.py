"""The default decode engine: drives any transformers causal LM with a KV cache.

One prefill per distinct prompt; rows that have ended make room for others that wait, or leave the batch; the
log-probability of each token is captured as it is drawn. What computes the logits is a ``Decoder``. Every token of a
row has a random number of its own, so a row's tokens do not depend on the rows beside it. Leaves out: compiled steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lmrl.algorithms.beside import POLICY
from lmrl.engines.local.decoder import Decoder
from lmrl.engines.local.llama_decoder import LlamaDecoder, supports
from lmrl.engines.local.places import Places, Specs, Waiting
from lmrl.engines.local.plain_decoder import general_decoder
from lmrl.engines.protocol import Capabilities, Request, RequestSource, Response, WeightSource
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.engines.weights import LiveWeights
from lmrl.errors import EngineError, PromptError, SettingsError
from lmrl.text.card import TextCodec

STEPS_BETWEEN_LOOKS = 4
"""Steps on a GPU between two times that the host asks which rows have ended."""


@dataclass(frozen=True)
class Published:
    """Weights and the version that they were published as; ``copied`` is the module where they are a copy."""

    weights: WeightSource
    version: int
    copied: Any = None


class TransformersEngine:
    """Decode engine over ``model(...)`` with a cache; see the module's docstring.

    Responses of one model are sampled together, those of another model after them.
    """

    capabilities = Capabilities(exact=True, logits_processors=True, streaming=True, several_models=True)

    def __init__(self, settings: TransformersEngineSettings | None = None) -> None:
        self.settings = settings or TransformersEngineSettings()
        if self.settings.rows < 1:
            raise SettingsError(f"engine.transformers.rows is {self.settings.rows}; expected an integer >= 1")
        self._published: dict[str, Published] = {}
        self._sampling = False

    def publish(self, weights: WeightSource, version: int, model: str = POLICY) -> None:
        """Take weights; a copy of them unless they are synchronous. Raises ``EngineError`` while it samples."""
        if self._sampling:
            raise EngineError(
                "weights were published while responses are being sampled; this engine samples one batch after the "
                "other: publish before generate, or after its last response"
            )
        copied = None
        if not weights.synchronous:
            with weights.module() as module:
                copied = copy.deepcopy(module)
            if isinstance(copied, nn.Module):
                copied.requires_grad_(False)
            weights = LiveWeights(copied, weights.codec)
        self._published[model] = Published(weights, version, copied)

    def generate(self, requests: RequestSource) -> Iterator[Response]:
        """Yield the responses; see ``lmrl.engines.Engine``.

        Raises ``PromptError`` for an empty prompt or one that fills the context, ``NonFiniteError`` for NaN logits,
        ``EngineError`` for a model that was not published.
        """
        for responses in self.batches(requests):
            yield from responses

    def batches(self, requests: RequestSource) -> Iterator[list[Response]]:
        """Yield the same, all responses together that are found complete at one time."""
        if self._sampling:
            raise EngineError("generate was called while it was running; exhaust or close the first iterator")
        self._sampling = True
        try:
            yield from self._all_batches(requests)
        finally:
            self._sampling = False

    def close(self) -> None:
        """Drop copies of weights; live modules stay published."""
        self._published = {name: one for name, one in self._published.items() if one.copied is None}

    def forget(self) -> None:
        """Forget the published weights."""
        self._published.clear()

    def _all_batches(self, requests: RequestSource) -> Iterator[list[Response]]:
        backlog: list[Request] = []
        while True:
            backlog += self._checked(requests.take())
            if backlog:
                name = backlog[0].model
                chosen = [request for request in backlog if request.model == name]
                backlog = [request for request in backlog if request.model != name]
                published = self._published[name]
                with published.weights.module() as module:
                    yield from self._sample(module, published, chosen, requests, backlog)
            elif requests.closed:
                return
            else:
                requests.wait()

    def _checked(self, requests: list[Request]) -> list[Request]:
        for request in requests:
            if request.model not in self._published:
                names = ", ".join(sorted(self._published)) or "none"
                raise EngineError(
                    f"request {request.id} names the model {request.model!r}; published: {names}. Call publish before "
                    "generate."
                )
            _check_prompt(request)
            if request.spec.stop_strings and self._published[request.model].weights.codec is None:
                raise SettingsError("stop_strings need the tokenizer to be found; publish weights with their codec")
        return requests

    def _sample(
        self,
        module: Any,
        published: Published,
        requests: list[Request],
        source: RequestSource,
        backlog: list[Request],
    ) -> Iterator[list[Response]]:
        """Sample requests of one model, and those of it that come meanwhile; what else comes is put on ``backlog``."""
        waiting = Waiting(requests)
        while waiting:
            with torch.no_grad():
                decoder = self._decoder(module, waiting, not source.closed)
            codec, version = published.weights.codec, published.version
            for responses in self._decode(decoder, waiting, module.device, codec, version):
                yield responses
                here: list[Request] = []
                for request in self._checked(source.take()):
                    # First come, first served: nothing overtakes what cannot be decoded here.
                    fits = not backlog and request.model == requests[0].model and waiting.fits(request)
                    (here if fits else backlog).append(request)
                waiting.add(here)

    def _decoder(self, model: Any, waiting: Waiting, growing: bool) -> Decoder:
        """Return the fastest decoder that can drive the model."""
        most_steps = waiting.most_tokens + self._steps_between_looks(model.device)
        turnover = growing or len(waiting) > self.settings.rows
        if self.settings.fast_path and supports(model):
            return LlamaDecoder(model, waiting.prompts, most_steps, turnover)
        return general_decoder(model, waiting.prompts, most_steps, turnover)

    def _steps_between_looks(self, device: torch.device) -> int:
        """Return after how many steps the host asks who has ended: on a GPU each time would make it wait."""
        return 1 if device.type == "cpu" else STEPS_BETWEEN_LOOKS

    @torch.no_grad()
    def _decode(
        self, decoder: Decoder, waiting: Waiting, device: torch.device, codec: TextCodec | None, version: int
    ) -> Iterator[list[Response]]:
        """Sample waiting requests to their ends; all of them if the decoder refills."""
        requests, numbers = waiting.take(self.settings.rows)
        logits = decoder.admit(torch.arange(len(requests), device=device), numbers)
        specs = Specs(logits.shape[-1], device)
        batch = Places.of(requests, specs, waiting.most_tokens, device)
        looks_every, steps = self._steps_between_looks(device), 0
        while True:
            ids = batch.draw(specs, logits, codec)
            steps += 1
            finished = int(batch.done.sum()) if steps % looks_every == 0 else 0
            if not finished or finished < min(len(batch), self.settings.compact_share * len(batch)):
                logits = decoder.step(ids, batch.done)
                continue
            yield batch.responses(specs, version)
            going = len(batch) - finished
            # Places never become more: where more than twice as many could be used, this decoder only ends its rows.
            enough = 2 * len(batch) >= min(self.settings.rows, going + len(waiting))
            requests, numbers = waiting.take(finished if decoder.refills and enough else 0)
            ended = batch.done.nonzero().squeeze(1)
            keep = torch.cat([(~batch.done).nonzero().squeeze(1), ended[: len(requests)]]).sort().values
            if not len(keep):
                return
            ids, refilled = ids[keep], batch.done[keep]
            if len(keep) < len(batch):
                decoder.keep(keep)
                batch = batch.select(keep)
            if len(requests) < len(batch):
                logits = decoder.step(ids, refilled)
            if requests:
                free = refilled.nonzero().squeeze(1)
                first = decoder.admit(free, numbers)
                logits = logits.index_copy(0, free, first) if len(requests) < len(batch) else first
                batch.put(free, Places.of(requests, specs, waiting.most_tokens, device))


def _check_prompt(request: Request) -> None:
    if len(request.ids) == 0:
        raise PromptError(f"prompt {request.id} has no tokens; expected at least one (a BOS token counts)")
    context = request.spec.context_length
    if context is not None and len(request.ids) >= context:
        raise PromptError(
            f"prompt {request.id} has {len(request.ids)} tokens and leaves no room in the context of {context}; "
            "shorten it"
        )
