"""The default decode engine: drives any transformers causal LM with a KV cache.

One prefill per distinct prompt, whose cache is repeated for its samples; finished rows leave the batch; the
log-probability of each token is captured as it is drawn. Leaves out: continuous refilling and compiled decode steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmrl.errors import NonFiniteError, PromptError, SettingsError
from lmrl.models.card import TextCodec, contains_stop
from lmrl.rollout import Samples, TextInputs, lengths_to_mask
from lmrl.sampling.cache import make_cache, refuse_unfilled, select_rows
from lmrl.sampling.distribution import draw
from lmrl.sampling.engine import OnFinished
from lmrl.sampling.finish import FinishReason, finish_codes, finish_flags
from lmrl.sampling.settings import TransformersEngineSettings
from lmrl.sampling.spec import SamplingSpec


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
        """Sample one response per prompt row; see ``lmrl.sampling.Engine``.

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
        store = _Store(
            ids=torch.zeros(total, spec.max_new_tokens, dtype=torch.long, device=device),
            logprobs=torch.zeros(total, spec.max_new_tokens, device=device),
            lengths=torch.zeros(total, dtype=torch.long, device=device),
            codes=torch.zeros(total, dtype=torch.long, device=device),
        )
        for start in range(0, total, self.settings.rows):
            rows = range(start, min(start + self.settings.rows, total))
            self._decode(model, prompts, rows, spec, uniforms, store, codec, on_finished)
        store.drop_beyond_lengths()
        if not bool(torch.isfinite(store.logprobs).all()):
            raise NonFiniteError("a NaN or an infinity in the policy's logits while sampling; the model has diverged")
        return _samples(prompts, store, spec)

    def _decode(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        rows: range,
        spec: SamplingSpec,
        uniforms: Tensor,
        store: _Store,
        codec: TextCodec | None,
        on_finished: OnFinished | None,
    ) -> None:
        """Sample the given rows to their ends, writing into ``store``."""
        device = uniforms.device
        logits, cache, mask = _prefill(model, [prompts[row] for row in rows], spec.max_new_tokens)
        ends_row = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
        ends_row[[token for token in spec.eos_ids if token < len(ends_row)]] = True
        alive = torch.tensor(list(rows), device=device)  # store row of each batch row
        prompt_lengths = torch.tensor([len(prompts[row]) for row in rows], device=device)
        lengths = torch.zeros_like(prompt_lengths)
        codes = torch.zeros_like(prompt_lengths)
        done = torch.zeros(len(alive), dtype=torch.bool, device=device)
        width = int(prompt_lengths.max())
        for step in range(spec.max_new_tokens):
            logprobs = spec.log_distribution(logits)
            ids = draw(logprobs, uniforms[alive, step]).clamp_max(logprobs.shape[-1] - 1)
            # Finished rows draw too, and what they drew is dropped at the end: choosing the others here would make
            # the host wait for the device in every step.
            store.ids[alive, step] = ids
            store.logprobs[alive, step] = logprobs.gather(-1, ids[:, None]).squeeze(-1)
            lengths += ~done
            hit_stop = _stops(store, alive, done, step, prompts, spec, codec)
            newest = finish_codes(
                ends_row[ids], hit_stop, lengths, prompt_lengths, spec.max_new_tokens, spec.context_length
            )
            codes = torch.where(done, codes, newest)
            done = codes != int(FinishReason.NONE)
            finished = int(done.sum())
            leaving = finished == len(alive) or (finished and finished >= self.settings.compact_share * len(alive))
            if leaving:
                store.lengths[alive], store.codes[alive] = lengths, codes
                if on_finished is not None:
                    on_finished(*store.rows(alive[done]))
            if finished == len(alive):
                return
            if leaving:
                keep = (~done).nonzero().squeeze(1)
                select_rows(cache, keep)
                alive, ids, prompt_lengths = alive[keep], ids[keep], prompt_lengths[keep]
                lengths, codes, done = lengths[keep], codes[keep], done[keep]
                mask = mask[keep] if mask is not None else None
            logits = model(
                input_ids=ids[:, None],
                past_key_values=cache,
                use_cache=True,
                # Rows that wait to leave may already fill the context, and a position beyond it is no position at all.
                position_ids=(prompt_lengths + step).masked_fill(done, 0)[:, None],
                attention_mask=mask[:, : width + step + 1] if mask is not None else None,
                logits_to_keep=1,
            ).logits[:, -1]


def _prefill(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[Tensor, Any, Tensor | None]:
    """Run each distinct prompt once; return the rows' next-token logits, their cache, and a mask if padded.

    Prompts of different lengths are padded on the left, so that every row's next column is the same; the mask
    (B, P + new_tokens) is then true on real tokens and on all columns to come.
    """
    device = model.device
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(prompt) for prompt in prompts))}
    distinct = list(index)
    width = max(len(prompt) for prompt in distinct)
    ids = torch.zeros(len(distinct), width, dtype=torch.long)
    lengths = torch.tensor([len(prompt) for prompt in distinct])
    for row, prompt in enumerate(distinct):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
    padded = bool((lengths < width).any())
    mask = None
    positions = torch.arange(width)[None, :].expand(len(distinct), width)
    if padded:
        real = positions >= (width - lengths)[:, None]
        mask = torch.cat([real, torch.ones(len(distinct), new_tokens, dtype=torch.bool)], dim=1).to(device)
        positions = (positions - (width - lengths)[:, None]).clamp_min(0)
    cache = make_cache(model, width + new_tokens)
    logits = model(
        input_ids=ids.to(device),
        past_key_values=cache,
        use_cache=True,
        position_ids=positions.to(device),
        attention_mask=mask[:, :width] if mask is not None else None,
        logits_to_keep=1,
    ).logits[:, -1]
    refuse_unfilled(cache, model)
    repeat = torch.tensor([index[tuple(prompt)] for prompt in prompts], device=device)
    select_rows(cache, repeat)
    return logits[repeat], cache, mask[repeat] if mask is not None else None


def _stops(
    store: _Store,
    alive: Tensor,
    done: Tensor,
    step: int,
    prompts: Sequence[Sequence[int]],
    spec: SamplingSpec,
    codec: TextCodec | None,
) -> Tensor:
    """Say per batch row whether its text now holds a stop string."""
    hits = torch.zeros_like(done)
    if not spec.stop_strings or codec is None:
        return hits
    sampled = store.ids[alive, : step + 1].tolist()
    for position, (row, finished) in enumerate(zip(alive.tolist(), done.tolist(), strict=True)):
        if not finished:
            hits[position] = contains_stop(codec, prompts[row], sampled[position], spec.stop_strings)
    return hits


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
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    prompt_ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        prompt_ids[row, : len(prompt)] = torch.tensor(prompt)
    width = int(store.lengths.max())
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(prompt) for prompt in prompts))}
    terminated, truncated = finish_flags(store.codes, spec.on_length)
    return Samples(
        inputs=TextInputs(prompt_ids.to(device), lengths.to(device), store.ids[:, :width].contiguous(), store.lengths),
        action_mask=lengths_to_mask(store.lengths, width),
        behavior_logprobs=store.logprobs[:, :width].contiguous(),
        terminated=terminated,
        truncated=truncated,
        finish_reasons=store.codes.to(torch.int8),
        group=torch.tensor([numbers[tuple(prompt)] for prompt in prompts], device=device),
    )
