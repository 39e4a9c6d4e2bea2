"""One answer, piece by piece as it is sampled: the decode engine's loop for a single row, without its batching.

The tokens are those that the engine samples with the same seed. Text comes out when it is certain: a token may hold
part of a character, and what looks like the beginning of a stop string is held back until it is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lmrl.engines.local.places import draw
from lmrl.engines.local.plain_decoder import general_decoder
from lmrl.engines.protocol import FinishReason, SamplingSpec
from lmrl.errors import NonFiniteError
from lmrl.models.loading import LanguageModel
from lmrl.seeds import response_seeds, token_uniforms
from lmrl.text.codec import response_texts
from lmrl.text.responses import certain_text, contains_stop

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
        codec, spec = self.model.card.codec, self.spec
        return response_texts(codec, [self._tail], [self.ids], spec.eos_ids, spec.stop_strings)[0]

    @property
    def _tail(self) -> list[int]:
        return list(self.prompt[-CONTEXT_TOKENS:])

    def pieces(self) -> Iterator[str]:
        """Yield the answer's text as it comes."""
        said = ""
        for _ in self._tokens():
            going = self.finish == FinishReason.NONE
            codec, stops = self.model.card.codec, self.spec.stop_strings
            certain = certain_text(codec, self._tail, self.ids, stops) if going else self.text
            if len(certain) > len(said) and certain.startswith(said):
                yield certain[len(said) :]
                said = certain

    def _tokens(self) -> Iterator[int]:
        model, spec = self.model.model, self.spec
        context = spec.context_length or self.model.card.context_length
        seeds = torch.tensor(response_seeds(self.seed, [0]), device=model.device)
        uniforms = token_uniforms(seeds[:, None], torch.arange(spec.max_new_tokens, device=model.device))
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
        if contains_stop(self.model.card.codec, self._tail, self.ids, self.spec.stop_strings):
            return FinishReason.STOP
        if len(self.ids) >= self.spec.max_new_tokens:
            return FinishReason.LENGTH
        return FinishReason.CONTEXT if len(self.prompt) + len(self.ids) >= context else FinishReason.NONE
