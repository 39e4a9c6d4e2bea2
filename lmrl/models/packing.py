"""Rows without padding: all of a batch's tokens in one sequence, a prompt that several rows share only once.

Every linear layer then computes real tokens alone. Attention stays within a row: the flat queries, keys and values are
gathered into blocks of rows of like length, attended to causally, and gathered back. It is registered with
transformers' ``AttentionInterface`` and used only inside ``packed_attention``, so decoding keeps the model's own.
Leaves out: which models can be packed (``lmrl.models.packable``) and what is done with the states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.rollout import TextInputs
from lmrl.algorithms.rows import lengths_to_mask
from lmrl.errors import ModelError

ATTENTION_NAME = "lmrl_packed"
BUCKET_RATIO = 1.25
"""Rows share a block of attention where none is longer than this times another."""


@dataclass(frozen=True)
class Packing:
    """N tokens in one sequence and how B rows read them, from U distinct prompts.

    ``ids`` and ``positions`` (N,): first all prompts, then what follows the prompt in each row. ``states`` are the
    places in it of the states that predict each row's response tokens, in row-major order; rows with one prompt share
    their first. ``slots`` (M,) says which token stands in each slot of the blocks, ``places`` (N,) in which slot a
    token's output is read, ``owners`` (M,) is its inverse, N where a slot is not read. ``blocks`` holds (rows, length)
    of each block, ``block_prompts`` the number of each of its rows' prompts.
    """

    ids: Tensor
    positions: Tensor
    states: Tensor
    slots: Tensor
    places: Tensor
    owners: Tensor
    blocks: list[tuple[int, int]]
    block_prompts: list[Tensor]
    prompt_tokens: int
    prompt_places: Tensor
    """Where each prompt token stands in (U x longest prompt), padded."""
    prompt_shape: tuple[int, int]

    @property
    def shared(self) -> bool:
        """Whether two rows share a prompt."""
        return sum(rows for rows, _ in self.blocks) > self.prompt_shape[0]


def pack(inputs: TextInputs, include_last: bool = False) -> Packing:
    """Lay out rows without padding; ``include_last`` adds the state after each response.

    A response's last token is left out unless that state is wanted: nothing is predicted after it. Reads the lengths
    on the host.
    """
    device = inputs.prompt_ids.device
    prompt_lengths = inputs.prompt_lengths
    wanted = inputs.response_lengths + int(include_last)
    after = (wanted - 1).clamp_min(0)  # tokens that follow the prompt
    lengths = prompt_lengths + after
    longest_prompt, longest_after, _ = torch.stack([prompt_lengths.max(), after.max(), lengths.max()]).tolist()

    number, first = _distinct_prompts(inputs, longest_prompt)
    prompts = len(first)
    own_lengths = prompt_lengths[first]
    in_prompt = lengths_to_mask(own_lengths, longest_prompt)
    in_response = lengths_to_mask(after, longest_after)
    steps = torch.arange(longest_after, device=device)
    prompt_ids = inputs.prompt_ids[first, :longest_prompt][in_prompt]
    ids = torch.cat([prompt_ids, inputs.response_ids[:, :longest_after][in_response]])
    columns = torch.arange(longest_prompt, device=device).expand(prompts, -1)
    positions = torch.cat([columns[in_prompt], (prompt_lengths[:, None] + steps)[in_response]])
    prompt_tokens = len(prompt_ids)
    prompt_start = own_lengths.cumsum(0) - own_lengths
    response_start = prompt_tokens + after.cumsum(0) - after

    # (B, 1 + longest_after): the prompt's last token, then the response's.
    last_of_prompt = (prompt_start[number] + prompt_lengths - 1)[:, None]
    table = torch.cat([last_of_prompt, response_start[:, None] + steps], dim=1)
    states = table[lengths_to_mask(wanted.clamp_max(1 + longest_after), 1 + longest_after)]

    order = torch.argsort(lengths, stable=True)
    blocks = _blocks(lengths[order].tolist())
    slots, block_prompts, slot_start, start, row = [], [], torch.zeros_like(lengths), 0, 0
    for count, width in blocks:
        members = order[row : row + count]
        places = torch.arange(width, device=device)[None, :]
        here = prompt_lengths[members, None]
        of_prompt = prompt_start[number[members], None] + places
        of_response = response_start[members, None] + places - here
        token = torch.where(places < here, of_prompt, of_response)
        # What stands in padding is read by nobody: any token will do.
        slots.append(token.where(places < lengths[members, None], 0).flatten())
        block_prompts.append(number[members])
        slot_start[members] = start + width * torch.arange(count, device=device)
        start, row = start + count * width, row + count
    of_prompts = (slot_start[first, None] + columns)[in_prompt]
    of_responses = ((slot_start + prompt_lengths)[:, None] + steps)[in_response]
    places = torch.cat([of_prompts, of_responses])
    owners = torch.full((start,), len(ids), device=device)
    owners[places] = torch.arange(len(ids), device=device)
    return Packing(
        ids,
        positions,
        states,
        torch.cat(slots),
        places,
        owners,
        blocks,
        block_prompts,
        prompt_tokens,
        in_prompt.flatten().nonzero().squeeze(1),
        (prompts, longest_prompt),
    )


def _distinct_prompts(inputs: TextInputs, width: int) -> tuple[Tensor, Tensor]:
    """Return each row's prompt as a number below U, (B,), and the first row of each prompt, (U,)."""
    lengths = inputs.prompt_lengths
    padded = inputs.prompt_ids[:, :width].masked_fill(~lengths_to_mask(lengths, width), 0)
    keyed = torch.cat([lengths[:, None], padded], dim=1)  # a pad id may be a token
    distinct, number = keyed.unique(dim=0, return_inverse=True)
    rows = torch.arange(len(lengths), device=lengths.device)
    first = torch.full((len(distinct),), len(lengths), device=lengths.device)
    return number, first.scatter_reduce(0, number, rows, "amin")


def _blocks(lengths: list[int]) -> list[tuple[int, int]]:
    """Cut rows sorted by length into blocks of like length; return (rows, longest) of each."""
    blocks, start = [], 0
    for place, length in enumerate(lengths):
        if length > BUCKET_RATIO * lengths[start]:
            blocks.append((place - start, lengths[place - 1]))
            start = place
    blocks.append((len(lengths) - start, lengths[-1]))
    return blocks


class _Spread(torch.autograd.Function):
    """Flat tokens to slots. Its adjoint adds up what the rows of a prompt send back, a whole row at a time."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return flat.index_select(0, packing.slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grad, ctx.packing), None  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    """The adjoint of ``_Spread``; what padding sends back is 0 and left out."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        if not packing.shared:
            return slots.index_select(0, packing.places)
        prompts, width = packing.prompt_shape
        sums = slots.new_zeros(prompts, width, slots.shape[1])
        sizes = [rows * length for rows, length in packing.blocks]
        for block, (rows, length), numbers in zip(
            slots.split(sizes), packing.blocks, packing.block_prompts, strict=True
        ):
            # Beyond a prompt's end stands a response, whose sum is not read below.
            reach = min(width, length)
            sums[:, :reach].index_add_(0, numbers, block.view(rows, length, -1)[:, :reach])
        flat = slots.new_empty(len(packing.ids), slots.shape[1])
        count = packing.prompt_tokens
        torch.index_select(sums.view(prompts * width, -1), 0, packing.prompt_places, out=flat[:count])
        torch.index_select(slots, 0, packing.places[count:], out=flat[count:])
        return flat

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.packing), None  # type: ignore[no-untyped-call]


class _Read(torch.autograd.Function):
    """Slots to flat tokens: each token is read in one slot."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return slots.index_select(0, packing.places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Write.apply(grad, ctx.packing), None  # type: ignore[no-untyped-call]


class _Write(torch.autograd.Function):
    """The adjoint of ``_Read``: 0 in slots that nobody reads."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return torch.cat([flat, flat.new_zeros(1, flat.shape[1])]).index_select(0, packing.owners)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Read.apply(grad, ctx.packing), None  # type: ignore[no-untyped-call]


_current: ContextVar[Packing] = ContextVar("lmrl_packing")
_calls: ContextVar[list[Any] | None] = ContextVar("lmrl_packed_calls", default=None)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within rows; query (1, heads, N, width) to (1, N, heads, width), as transformers calls it.

    Raises ``ModelError`` where the model wants more of its attention than causality.
    """
    packing, calls = _current.get(), _calls.get()
    unknown = sorted(name for name in _UNSUPPORTED if options.get(name) is not None)
    window = options.get("sliding_window")
    if window is not None and window < max(length for _, length in packing.blocks):
        unknown.append("sliding_window")
    if unknown or attention_mask is not None:
        raise ModelError(f"packed attention has no {', '.join(unknown) or 'masks'}; this model computes padded rows")
    if calls is not None:
        calls.append(module)
    sizes = [rows * length for rows, length in packing.blocks]

    def blocks(flat: Tensor) -> Iterator[Tensor]:
        _, heads, count, width = flat.shape
        slots = _Spread.apply(flat[0].transpose(0, 1).reshape(count, heads * width), packing)  # type: ignore[no-untyped-call]
        for part, (rows, length) in zip(slots.split(sizes), packing.blocks, strict=True):
            yield part.view(rows, length, heads, width).transpose(1, 2)

    outputs = []
    for q, k, v in zip(blocks(query), blocks(key), blocks(value), strict=True):
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1).flatten(1))
    flat = _Read.apply(outputs[0] if len(outputs) == 1 else torch.cat(outputs), packing)  # type: ignore[no-untyped-call]
    return flat.view(1, query.shape[2], query.shape[1], -1), None


_UNSUPPORTED = ("softcap", "position_bias", "s_aux")


@contextmanager
def packed_attention(model: Any, packing: Packing) -> Iterator[None]:
    """Let a transformers model attend within the rows of ``packing`` for a while."""
    from transformers import AttentionInterface, PretrainedConfig

    AttentionInterface.register(ATTENTION_NAME, attend)
    held = [
        module.config for module in model.modules() if isinstance(getattr(module, "config", None), PretrainedConfig)
    ]
    configs = {id(config): config for config in held}.values()
    own = [config._attn_implementation for config in configs]
    token = _current.set(packing)
    try:
        for config in configs:
            config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        for config, name in zip(configs, own, strict=True):
            config._attn_implementation = name
        _current.reset(token)


@contextmanager
def counted_attention() -> Iterator[list[Any]]:
    """Give a list of the attention modules that attend packed within a ``with``, one entry a call."""
    calls: list[Any] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)
