"""State of the local engine: requests that wait, requests that are decoded side by side, and drawing their tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lmrl.algorithms.sequences import lengths_to_mask, select_record
from lmrl.engines.protocol import FinishReason, Request, Response, SamplingSpec, finish_codes
from lmrl.errors import NonFiniteError
from lmrl.seeds import token_uniforms
from lmrl.text.card import TextCodec, contains_stop

NO_LIMIT = 2**62
BLOCK = 64
"""Tokens whose probabilities are first summed when drawing: about the root of a vocabulary."""


class Waiting:
    """Requests for one model that wait, those of one prompt one after the other; prompts are numbered in that order."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.prompts: list[list[int]] = []
        self._waiting: deque[tuple[Request, int]] = deque()
        self.add(requests)
        self.longest = max(len(prompt) for prompt in self.prompts)
        self.most_tokens = max(request.spec.max_new_tokens for request, _ in self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, requests: Iterable[Request]) -> None:
        """Append requests."""
        numbers: dict[tuple[int, ...], int] = {}
        added: list[tuple[Request, int]] = []
        for request in requests:
            prompt = tuple(request.ids)
            if prompt not in numbers:
                numbers[prompt] = len(self.prompts)
                self.prompts.append(list(prompt))
            added.append((request, numbers[prompt]))
        self._waiting.extend(sorted(added, key=lambda entry: entry[1]))

    def take(self, count: int) -> tuple[list[Request], list[int]]:
        """Return the next requests, at most ``count``, and the numbers of their prompts."""
        taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        return [request for request, _ in taken], [number for _, number in taken]

    def fits(self, request: Request) -> bool:
        """Say whether a decoder that was made for these requests has room for another one."""
        return len(request.ids) <= self.longest and request.spec.max_new_tokens <= self.most_tokens


class Specs:
    """Distinct distributions and end tokens of a decoder's requests, by number; limits are columns of ``Places``."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self.stop_strings = False
        """True if a request has stop strings."""
        self._specs: list[SamplingSpec] = []
        self._ends = torch.zeros(0, vocabulary, dtype=torch.bool, device=device)

    def number(self, spec: SamplingSpec) -> int:
        """Return the number of a specification."""
        self.stop_strings = self.stop_strings or bool(spec.stop_strings)
        spec = replace(spec, max_new_tokens=1, context_length=None, stop_strings=(), on_length="terminate")
        if spec not in self._specs:
            ends = self._ends.new_zeros(1, self._ends.shape[1])
            ends[0, [token for token in spec.eos_ids if token < self._ends.shape[1]]] = True
            self._specs.append(spec)
            self._ends = torch.cat([self._ends, ends])
        return self._specs.index(spec)

    def ends(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """Return whether tokens (B,) end a response under the specifications of these numbers, (B,)."""
        return self._ends[numbers, ids]

    def draw(self, numbers: Tensor, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token of each row, each under its own specification; return ids and log-probabilities, (B,)."""
        if len(self._specs) == 1:
            return draw_from_logits(self._specs[0], logits, uniforms)
        ids = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        logprobs = torch.zeros(len(logits), device=logits.device)
        for number, spec in enumerate(self._specs):
            rows = (numbers == number).nonzero().squeeze(1)
            if len(rows):
                ids[rows], own = draw_from_logits(spec, logits[rows], uniforms[rows])
                logprobs[rows] = own.to(logprobs.dtype)
        return ids, logprobs


@dataclass
class Places:
    """The requests that are decoded side by side, all (B,) or (B, W): what each has sampled, and where it must end.

    ``limits`` says how many tokens a row may have, by its specification (``most_tokens``) and its context; ``stopped``
    whether its text holds a stop string. One column more than a row can have takes what it draws after its end, while
    it waits to leave.
    """

    requests: list[Request]
    specs: Tensor
    prompt_lengths: Tensor
    most_tokens: Tensor
    contexts: Tensor
    limits: Tensor
    lengths: Tensor
    done: Tensor
    stopped: Tensor
    ids: Tensor
    logprobs: Tensor
    uniforms: Tensor

    @classmethod
    def of(cls, requests: Sequence[Request], specs: Specs, width: int, device: torch.device) -> Places:
        """Return the places of requests that begin; ``width`` is the most tokens that any of them may have."""

        def column(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, device=device)

        seeds = column([(request.seed + 2**63) % 2**64 - 2**63 for request in requests])
        prompt_lengths = column([len(request.ids) for request in requests])
        most_tokens = column([request.spec.max_new_tokens for request in requests])
        contexts = column([request.spec.context_length or NO_LIMIT for request in requests])
        lengths = torch.zeros_like(prompt_lengths)
        return cls(
            requests=list(requests),
            specs=column([specs.number(request.spec) for request in requests]),
            prompt_lengths=prompt_lengths,
            most_tokens=most_tokens,
            contexts=contexts,
            limits=most_tokens.minimum(contexts - prompt_lengths),
            lengths=lengths,
            done=lengths.bool(),
            stopped=lengths.bool(),
            ids=torch.zeros(len(requests), width + 1, dtype=torch.long, device=device),
            logprobs=torch.zeros(len(requests), width + 1, device=device),
            uniforms=token_uniforms(seeds[:, None], torch.arange(width + 1, device=device)),
        )

    def __len__(self) -> int:
        return len(self.requests)

    def select(self, places: Tensor) -> Places:
        """Return these places, (N,)."""
        return select_record(self, places)

    def put(self, places: Tensor, new: Places) -> None:
        """Let other requests begin at these places."""
        for place, request in zip(places.tolist(), new.requests, strict=True):
            self.requests[place] = request
        for field in fields(self):
            if field.name != "requests":
                getattr(self, field.name)[places] = getattr(new, field.name)

    def draw(self, specs: Specs, logits: Tensor, codec: TextCodec | None) -> Tensor:
        """Draw the next token of every row and note which rows are done; return the tokens, (B,).

        Rows that are done draw too, and what they draw is dropped: choosing the others would make the host wait for the
        device in every step.
        """
        rows = torch.arange(len(self), device=logits.device)
        ids, logprobs = specs.draw(self.specs, logits, self.uniforms[rows, self.lengths])
        self.ids[rows, self.lengths] = ids
        self.logprobs[rows, self.lengths] = logprobs
        self.lengths = self.lengths + ~self.done
        if specs.stop_strings and codec is not None:
            self._find_stops(codec)
        self.done = self.done | specs.ends(self.specs, ids) | self.stopped | (self.lengths >= self.limits)
        return ids

    def responses(self, specs: Specs, version: int) -> list[Response]:
        """Return the responses of the rows that are done. Raises ``NonFiniteError`` if one was drawn from NaN."""
        places = self.done.nonzero().squeeze(1)
        lengths = self.lengths[places]
        last = self.ids[places, lengths - 1]
        codes = finish_codes(
            specs.ends(self.specs[places], last),
            self.stopped[places],
            lengths,
            self.prompt_lengths[places],
            self.most_tokens[places],
            self.contexts[places],
        )
        width = int(lengths.max())
        ids, logprobs = self.ids[places, :width], self.logprobs[places, :width]
        if not bool((logprobs.isfinite() | ~lengths_to_mask(lengths, width)).all()):
            raise NonFiniteError("a NaN or an infinity in the policy's logits while sampling; the model has diverged")
        columns = (places.tolist(), lengths.tolist(), ids.tolist(), logprobs.tolist(), codes.tolist())
        return [
            Response(self.requests[place], row[:count], scores[:count], FinishReason(code), [version] * count)
            for place, count, row, scores, code in zip(*columns, strict=True)
        ]

    def _find_stops(self, codec: TextCodec) -> None:
        """Mark the rows whose text now holds one of their stop strings."""
        going = [place for place, done in enumerate(self.done.tolist()) if not done]
        going = [place for place in going if self.requests[place].spec.stop_strings]
        if not going:
            return
        places = torch.tensor(going, device=self.ids.device)
        found = [
            contains_stop(codec, self.requests[place].ids, ids[:length], self.requests[place].spec.stop_strings)
            for place, ids, length in zip(going, self.ids[places].tolist(), self.lengths[places].tolist(), strict=True)
        ]
        self.stopped[places] = torch.tensor(found, dtype=torch.bool, device=self.ids.device)


def draw_from_logits(spec: SamplingSpec, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row under ``spec`` and return (ids, log-probabilities), (B,) each.

    ``logits`` (B, V), ``uniforms`` (B,) float64 in [0, 1). The result is that of ``spec.log_distribution`` and
    ``draw``. Where the spec leaves the support as it is, no normalised (B, V) distribution is made: one pass of
    exponentials, whose sums over blocks of tokens say in which block the draw lies, and a cumulative sum over that
    block alone.
    """
    if spec.filters_support or spec.forbidden_ids or spec.temperature == 0:
        logprobs = spec.log_distribution(logits)
        ids = draw(logprobs, uniforms)
        return ids, logprobs.gather(-1, ids[:, None]).squeeze(-1)
    logits = logits.float()
    if spec.temperature != 1:
        logits = logits / spec.temperature
    probabilities = logits.softmax(-1)
    vocabulary = probabilities.shape[-1]
    padded = torch.nn.functional.pad(probabilities, (0, -vocabulary % BLOCK)) if vocabulary % BLOCK else probabilities
    blocks = padded.view(len(padded), -1, BLOCK)
    cumulative = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    targets = uniforms * cumulative[:, -1]
    block = _search(cumulative, targets)
    before = cumulative.gather(1, (block - 1).clamp_min(0)).masked_fill(block == 0, 0).squeeze(1)
    within = blocks[torch.arange(len(blocks), device=blocks.device), block.squeeze(1)]
    place = _search(within.cumsum(-1, dtype=torch.float64), targets - before)
    ids = (block * BLOCK + place).clamp_max(vocabulary - 1)
    return ids.squeeze(1), probabilities.gather(-1, ids).squeeze(1).log()


def _search(cumulative: Tensor, targets: Tensor) -> Tensor:
    """Return the first place where ``cumulative`` (B, N) exceeds ``targets`` (B,), or the last increase, (B, 1)."""
    total = cumulative[:, -1]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(cumulative, torch.minimum(targets, below_total)[:, None], right=True).clamp_max_(
        cumulative.shape[-1] - 1
    )


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inverse CDF.

    ``logprobs`` (B, V), ``uniforms`` (B,) in [0, 1). Returns (B,) int64. A token of probability 0 is never drawn: the
    first index whose cumulative probability exceeds the uniform has a positive probability of its own.
    """
    # The sum needs double precision where vocabularies are large; its terms have no more than the log-probabilities do.
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    return _search(cumulative, uniforms.double() * cumulative[:, -1]).squeeze(1)
