"""The default decode engine: drives any transformers causal LM with a KV cache.

One prefill per distinct prompt; rows that have ended make room for others that wait, or leave the batch; the
log-probability of each token is captured as it is drawn. What computes the logits is a ``Decoder``. Every token of a
row has a random number of its own, so a row's tokens do not depend on the rows beside it. Leaves out: compiled steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.rollout import Samples
from lmrl.algorithms.rows import lengths_to_mask, select_record
from lmrl.algorithms.sequences import Sequences
from lmrl.engines.decoder import Decoder
from lmrl.engines.distribution import draw_from_logits
from lmrl.engines.engine import OnFinished
from lmrl.engines.finish import finish_codes, finish_flags
from lmrl.engines.llama_decoder import LlamaDecoder, supports
from lmrl.engines.plain_decoder import general_decoder
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.engines.spec import SamplingSpec
from lmrl.errors import NonFiniteError, PromptError, SettingsError
from lmrl.text.card import TextCodec, contains_stop

STEPS_BETWEEN_LOOKS = 4
"""Steps on a GPU between two times that the host asks which rows have ended."""


@dataclass
class _Store:
    """Where sampled tokens land, one row per prompt row."""

    ids: Tensor
    logprobs: Tensor
    lengths: Tensor
    codes: Tensor

    def rows(self, rows: Tensor) -> tuple[list[int], list[list[int]]]:
        """Return these rows' indices and what they sampled, as ``OnFinished`` takes them."""
        lengths = self.lengths[rows].tolist()
        ids = self.ids[rows, : max(lengths)].tolist()
        return rows.tolist(), [row[:length] for row, length in zip(ids, lengths, strict=True)]

    def close(self, batch: _Places, ends_row: Tensor, spec: SamplingSpec) -> None:
        """Write down how long the rows of these places are, and why those that have ended did."""
        last = self.ids[batch.rows, batch.lengths - 1]
        codes = finish_codes(
            ends_row[last],
            batch.stopped,
            batch.lengths,
            batch.prompt_lengths,
            spec.max_new_tokens,
            spec.context_length,
        )
        self.lengths[batch.rows] = batch.lengths
        self.codes[batch.rows] = codes

    def drop_beyond_lengths(self) -> None:
        """Set what rows drew after their ends, while they waited to leave the batch, to 0."""
        beyond = ~lengths_to_mask(self.lengths, self.ids.shape[1])
        self.ids.masked_fill_(beyond, 0)
        self.logprobs.masked_fill_(beyond, 0)


class TransformersEngine:
    """Decode engine over ``model(...)`` with a cache; see the module's docstring."""

    def __init__(self, settings: TransformersEngineSettings | None = None) -> None:
        self.settings = settings or TransformersEngineSettings()
        if self.settings.rows < 1:
            raise SettingsError(f"engine.transformers.rows is {self.settings.rows}; expected an integer >= 1")

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        spec: SamplingSpec,
        seed: int,
        codec: TextCodec | None = None,
        on_finished: OnFinished | None = None,
    ) -> Samples:
        """Sample one response per prompt row; see ``lmrl.engines.Engine``.

        Raises ``PromptError`` for an empty prompt or one that fills the context, ``NonFiniteError`` for NaN logits.
        """
        _check_prompts(prompts, spec)
        if spec.stop_strings and codec is None:
            raise SettingsError("stop_strings need the tokenizer to be found; pass codec")
        generator = torch.Generator().manual_seed(seed)
        uniforms = torch.rand(len(prompts), spec.max_new_tokens, generator=generator, dtype=torch.float64)
        return self.sample_rows(model, prompts, spec, uniforms, codec, on_finished)

    @torch.no_grad()
    def sample_rows(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        spec: SamplingSpec,
        uniforms: Tensor,
        codec: TextCodec | None = None,
        on_finished: OnFinished | None = None,
    ) -> Samples:
        """Sample with given random numbers: ``uniforms`` (B, max_new_tokens) float64 in [0, 1), one per token."""
        device = model.device
        uniforms = uniforms.to(device)
        total = len(prompts)
        # One column more than a row can have: what rows draw after their end, while they wait to leave, lands there.
        width = spec.max_new_tokens + 1
        store = _Store(
            ids=torch.zeros(total, width, dtype=torch.long, device=device),
            logprobs=torch.zeros(total, width, device=device),
            lengths=torch.zeros(total, dtype=torch.long, device=device),
            codes=torch.zeros(total, dtype=torch.long, device=device),
        )
        places = min(self.settings.rows, total)
        queue = _Queue(prompts)
        while queue:
            decoder = self._decoder(model, queue, spec, places)
            self._decode(decoder, queue, places, prompts, spec, uniforms, store, codec, on_finished)
        store.drop_beyond_lengths()
        if not bool(torch.isfinite(store.logprobs).all()):
            raise NonFiniteError("a NaN or an infinity in the policy's logits while sampling; the model has diverged")
        return _samples(prompts, store, spec)

    def _decoder(self, model: Any, queue: _Queue, spec: SamplingSpec, places: int) -> Decoder:
        """Return the fastest decoder that can drive the model."""
        most_steps = spec.max_new_tokens + self._steps_between_looks(model.device)
        turnover = len(queue) > places
        if self.settings.fast_path and supports(model):
            return LlamaDecoder(model, queue.prompts, most_steps, turnover)
        return general_decoder(model, queue.prompts, most_steps, turnover)

    def _steps_between_looks(self, device: torch.device) -> int:
        """Return after how many steps the host asks who has ended: on a GPU each time would make it wait."""
        return 1 if device.type == "cpu" else STEPS_BETWEEN_LOOKS

    def _decode(
        self,
        decoder: Decoder,
        queue: _Queue,
        places: int,
        prompts: Sequence[Sequence[int]],
        spec: SamplingSpec,
        uniforms: Tensor,
        store: _Store,
        codec: TextCodec | None,
        on_finished: OnFinished | None,
    ) -> None:
        """Sample rows of the queue to their ends, writing into ``store``; all of them if the decoder refills."""
        device = uniforms.device
        rows, numbers = queue.take(places)
        logits = decoder.admit(torch.arange(len(rows), device=device), numbers)
        ends_row = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
        ends_row[[token for token in spec.eos_ids if token < len(ends_row)]] = True
        batch = _Places.of(rows, prompts, spec, device)
        looks_every, steps = self._steps_between_looks(device), 0
        while True:
            # Rows that have ended draw too, and what they draw is dropped: choosing the others here would make the
            # host wait for the device in every step.
            column = batch.lengths.clamp_max(spec.max_new_tokens - 1)
            ids, logprobs = draw_from_logits(spec, logits, uniforms[batch.rows, column])
            store.ids[batch.rows, batch.lengths] = ids
            store.logprobs[batch.rows, batch.lengths] = logprobs
            batch.lengths = batch.lengths + ~batch.done
            if spec.stop_strings and codec is not None:
                _find_stops(store, batch, prompts, spec, codec)
            batch.done = batch.done | ends_row[ids] | batch.stopped | (batch.lengths >= batch.limits)
            steps += 1
            finished = int(batch.done.sum()) if steps % looks_every == 0 else 0
            if not finished or finished < min(len(batch), self.settings.compact_share * len(batch)):
                logits = decoder.step(ids, batch.done)
                continue
            store.close(batch, ends_row, spec)
            if on_finished is not None:
                on_finished(*store.rows(batch.rows[batch.done]))
            rows, numbers = queue.take(finished if decoder.refills else 0)
            ended = batch.done.nonzero().squeeze(1)
            keep = torch.cat([(~batch.done).nonzero().squeeze(1), ended[: len(rows)]]).sort().values
            if not len(keep):
                return
            ids, refilled = ids[keep], batch.done[keep]
            if len(keep) < len(batch):
                decoder.keep(keep)
                batch = batch.select(keep)
            if len(rows) < len(batch):
                logits = decoder.step(ids, refilled)
            if rows:
                free = refilled.nonzero().squeeze(1)
                first_logits = decoder.admit(free, numbers)
                logits = logits.index_copy(0, free, first_logits) if len(rows) < len(batch) else first_logits
                batch.put(free, rows, prompts, spec)


class _Queue:
    """Rows that wait to be sampled, those of one prompt one after the other; prompts are numbered in that order."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        numbers: dict[tuple[int, ...], int] = {}
        for prompt in prompts:
            numbers.setdefault(tuple(prompt), len(numbers))
        self.prompts = list(numbers)
        number_of = [numbers[tuple(prompt)] for prompt in prompts]
        self._waiting = deque(sorted(enumerate(number_of), key=lambda entry: entry[1]))

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, count: int) -> tuple[list[int], list[int]]:
        """Return the next rows, at most ``count``, and the numbers of their prompts."""
        taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        return [row for row, _ in taken], [number for _, number in taken]


@dataclass
class _Places:
    """The rows that are decoded side by side, all (B,): where each lands in the store, and how far it is.

    ``limits`` says how many tokens a row may have; ``stopped`` whether its text holds a stop string.
    """

    rows: Tensor
    prompt_lengths: Tensor
    limits: Tensor
    lengths: Tensor
    done: Tensor
    stopped: Tensor

    @classmethod
    def of(
        cls, rows: Sequence[int], prompts: Sequence[Sequence[int]], spec: SamplingSpec, device: torch.device
    ) -> _Places:
        """Return the places of rows that begin."""
        prompt_lengths = torch.tensor([len(prompts[row]) for row in rows], device=device)
        limits = torch.full_like(prompt_lengths, spec.max_new_tokens)
        if spec.context_length is not None:
            limits = limits.minimum(spec.context_length - prompt_lengths)
        lengths = torch.zeros_like(prompt_lengths)
        return cls(torch.tensor(rows, device=device), prompt_lengths, limits, lengths, lengths.bool(), lengths.bool())

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, places: Tensor) -> _Places:
        """Return these places, (N,)."""
        return select_record(self, places)

    def put(self, places: Tensor, rows: Sequence[int], prompts: Sequence[Sequence[int]], spec: SamplingSpec) -> None:
        """Let other rows begin at these places."""
        new = _Places.of(rows, prompts, spec, self.rows.device)
        for field in fields(self):
            getattr(self, field.name)[places] = getattr(new, field.name)


def _find_stops(
    store: _Store, batch: _Places, prompts: Sequence[Sequence[int]], spec: SamplingSpec, codec: TextCodec
) -> None:
    """Mark the places whose text now holds a stop string."""
    going = (~batch.done).nonzero().squeeze(1)
    rows, lengths = batch.rows[going].tolist(), batch.lengths[going].tolist()
    sampled = store.ids[batch.rows[going]].tolist()
    found = [
        contains_stop(codec, prompts[row], ids[:length], spec.stop_strings)
        for row, ids, length in zip(rows, sampled, lengths, strict=True)
    ]
    batch.stopped[going] = torch.tensor(found, dtype=torch.bool, device=going.device)


def _check_prompts(prompts: Sequence[Sequence[int]], spec: SamplingSpec) -> None:
    if not prompts:
        raise PromptError("there are no prompts to sample from")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise PromptError(f"prompt {row} has no tokens; expected at least one (a BOS token counts)")
        if spec.context_length is not None and len(prompt) >= spec.context_length:
            raise PromptError(
                f"prompt {row} has {len(prompt)} tokens and leaves no room in the context of {spec.context_length}; "
                "shorten it"
            )


def _samples(prompts: Sequence[Sequence[int]], store: _Store, spec: SamplingSpec) -> Samples:
    device = store.ids.device
    width = int(store.lengths.max())
    rows = [row[:length] for row, length in zip(store.ids.tolist(), store.lengths.tolist(), strict=True)]
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(prompt) for prompt in prompts))}
    terminated, truncated = finish_flags(store.codes, spec.on_length)
    return Samples(
        inputs=Sequences.of_pairs(zip(prompts, rows, strict=True), device),
        action_mask=lengths_to_mask(store.lengths, width),
        sampler_logprobs=store.logprobs[:, :width].contiguous(),
        terminated=terminated,
        truncated=truncated,
        finish_reasons=store.codes.to(torch.int8),
        group=torch.tensor([numbers[tuple(prompt)] for prompt in prompts], device=device),
    )
