"""Sampling texts for people, annotators and reports: prompts in, completions with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmrl.engines.batch import generate_all, requests_of, require_sampled_ids
from lmrl.engines.protocol import Engine, FinishReason, SamplingSpec
from lmrl.engines.settings import SamplingSettings
from lmrl.engines.weights import LiveWeights
from lmrl.errors import SettingsError
from lmrl.text.card import ModelCard, response_texts
from lmrl.text.turns import with_turn_end

if TYPE_CHECKING:
    from lmrl.models.loading import LanguageModel


@dataclass(frozen=True)
class Completion:
    """One sampled completion: its text without the end token, and what was sampled, the end token included.

    ``logprobs`` are those of the distribution that the tokens were drawn from, one per id.
    """

    text: str
    ids: list[int]
    logprobs: list[float]
    finish: FinishReason

    @property
    def ended(self) -> bool:
        """True if the model ended it itself, by an end token or a stop string."""
        return self.finish in (FinishReason.EOS, FinishReason.STOP)


def sampling_spec(settings: SamplingSettings, card: ModelCard, in_turns: bool = False) -> SamplingSpec:
    """Return the specification that settings and a model's own ids and context make together.

    ``in_turns``: the model answers in a conversation, so the chat template's end-of-turn token ends a response. Raises
    ``SettingsError`` for a forbidden id outside the model's vocabulary.
    """
    outside = [i for i in settings.forbidden_ids if not 0 <= i < card.vocab_size]
    if outside:
        raise SettingsError(f"sampling.forbidden_ids holds {outside[0]}; the vocabulary has {card.vocab_size} ids")
    card = with_turn_end(card) if in_turns else card
    return SamplingSpec(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        max_new_tokens=settings.max_new_tokens,
        eos_ids=card.eos_ids,
        stop_strings=tuple(settings.stop_strings),
        forbidden_ids=tuple(settings.forbidden_ids),
        context_length=card.context_length,
        on_length=settings.on_length,
    )


def sample_texts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    spec: SamplingSpec,
    seed: int,
    engine: Engine | None = None,
    groups: Sequence[int] | None = None,
) -> list[Completion]:
    """Sample one completion per row of token ids; repeat a row for several samples of one prompt.

    The same seed gives the same completions. ``groups`` numbers the prompt of each row; without it, equal rows have one
    number. ``engine`` defaults to the one that drives transformers models. Raises
    ``PromptError`` for an empty prompt or one without room for an answer.
    """
    if not prompts:
        return []
    if engine is None:
        from lmrl.engines.local.engine import TransformersEngine

        engine = TransformersEngine()
    codec = model.card.codec
    engine.publish(LiveWeights(model.model, codec), 0)
    responses = generate_all(engine, requests_of(prompts, spec, seed, groups))
    require_sampled_ids([response.ids for response in responses], model.card)
    texts = response_texts(codec, prompts, [one.ids for one in responses], spec.eos_ids, spec.stop_strings)
    return [Completion(text, one.ids, one.logprobs, one.finish) for text, one in zip(texts, responses, strict=True)]
