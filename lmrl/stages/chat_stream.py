"""One answer, piece by piece as it is sampled: the decode engine's loop for a single row, without its batching.

The tokens are those that the engine samples with the same seed. Text comes out when it is certain: a token may hold
part of a character, and what looks like the beginning of a stop string is held back until it is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lmrl.errors import NonFiniteError
from lmrl.models.card import TextCodec, response_texts
from lmrl.models.loading import LanguageModel
from lmrl.sampling.distribution import draw
from lmrl.sampling.finish import FinishReason
from lmrl.sampling.plain_decoder import general_decoder
from lmrl.sampling.spec import SamplingSpec

CONTEXT_TOKENS = 16
"""Tokens of the prompt that an answer's text is decoded behind: enough for the space between them."""


@dataclass
class Stream:
    """An answer in the making: iterate over ``pieces`` for its text; ``ids`` and ``finish`` grow with it.

    ``finish`` stays ``NONE`` when the iteration was broken off.
    """

    model: LanguageModel
    prompt: Sequence[int]
    spec: SamplingSpec
    seed: int
    ids: list[int] = field(default_factory=list)
    finish: FinishReason = FinishReason.NONE

    @property
    def text(self) -> str:
        """The answer's text so far, without the end token and the stop string."""
        tail = list(self.prompt[-CONTEXT_TOKENS:])
        return response_texts(self.model.card.codec, [tail], [self.ids], self.spec.eos_ids, self.spec.stop_strings)[0]

    def pieces(self) -> Iterator[str]:
        """Yield the answer's text as it comes."""
        said = ""
        for _ in self._tokens():
            text = self.text
            certain = text if self.finish != FinishReason.NONE else text[: _certain(text, self.spec.stop_strings)]
            if len(certain) > len(said) and certain.startswith(said):
                yield certain[len(said) :]
                said = certain

    def _tokens(self) -> Iterator[int]:
        model, spec = self.model.model, self.spec
        context = spec.context_length or self.model.card.context_length
        generator = torch.Generator().manual_seed(self.seed)
        uniforms = torch.rand(1, spec.max_new_tokens, generator=generator, dtype=torch.float64).to(model.device)
        decoder = general_decoder(model, [self.prompt], spec.max_new_tokens)
        place = torch.zeros(1, dtype=torch.long, device=model.device)
        newest = place
        for step in range(spec.max_new_tokens):
            with torch.no_grad():
                logits = decoder.step(newest, place.bool()) if step else decoder.admit(place, [0])
                if not bool(torch.isfinite(logits).any()) or bool(torch.isnan(logits).any()):
                    raise NonFiniteError("a NaN or an infinity in the model's logits; the checkpoint is broken")
                logprobs = spec.log_distribution(logits)
                token = int(draw(logprobs, uniforms[:, step]).clamp_max(logprobs.shape[-1] - 1))
            self.ids.append(token)
            self.finish = self._finished(token, context)
            yield token
            if self.finish != FinishReason.NONE:
                return
            newest = torch.tensor([token], device=model.device)

    def _finished(self, token: int, context: int) -> FinishReason:
        if token in self.spec.eos_ids:
            return FinishReason.EOS
        if self.spec.stop_strings and _holds_stop(self.model.card.codec, self.prompt, self.ids, self.spec.stop_strings):
            return FinishReason.STOP
        if len(self.ids) >= self.spec.max_new_tokens:
            return FinishReason.LENGTH
        return FinishReason.CONTEXT if len(self.prompt) + len(self.ids) >= context else FinishReason.NONE


def _holds_stop(codec: TextCodec, prompt: Sequence[int], ids: Sequence[int], stops: Sequence[str]) -> bool:
    text = response_texts(codec, [list(prompt[-CONTEXT_TOKENS:])], [list(ids)])[0]
    return any(stop in text for stop in stops)


def _certain(text: str, stops: Sequence[str]) -> int:
    """Return how many characters of a text cannot change or vanish with the tokens to come."""
    end = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    for stop in stops:
        for size in range(min(len(stop) - 1, end), 0, -1):
            if text[:end].endswith(stop[:size]):
                end -= size
                break
    return end
