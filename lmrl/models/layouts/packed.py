"""Rows without padding: all of a batch's tokens in one sequence, a context that several rows share only once.

A context is what stands before a sequence's first sampled token: its prompt.

Every linear layer then computes real tokens alone. Attention stays within a row: the flat queries, keys and values are
gathered into blocks of rows of like length, attended to causally, and gathered back. It is registered with
transformers' ``AttentionInterface`` and used only inside ``packed_attention``, so decoding keeps the model's own.
Leaves out: which models can be packed (``lmrl.models.layouts.packable``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmrl.algorithms.sequences import Sequences, lengths_to_mask, state_positions
from lmrl.errors import ModelError

if TYPE_CHECKING:
    from lmrl.models.layouts import States

ATTENTION_NAME = "lmrl_packed"
BUCKET_RATIO = 1.25
"""Rows share a block of attention where none is longer than this times another."""


@dataclass(frozen=True)
class Packing:
    """N tokens in one sequence and how B rows read them, from U distinct contexts.

    ``ids`` and ``positions`` (N,): first all contexts, then what follows the context in each row. ``states`` are the
    places in it of the states that predict each row's sampled tokens, in row-major order; rows with one context share
    their first. ``slots`` (M,) says which token stands in each slot of the blocks, ``places`` (N,) in which slot a
    token's output is read, ``owners`` (M,) is its inverse, N where a slot is not read. ``blocks`` holds (rows, length)
    of each block, ``block_contexts`` the number of each of its rows' contexts.
    """

    ids: Tensor
    positions: Tensor
    states: Tensor
    slots: Tensor
    places: Tensor
    owners: Tensor
    blocks: list[tuple[int, int]]
    block_contexts: list[Tensor]
    context_tokens: int
    context_places: Tensor
    """Place of each token of a context in (U x longest context), padded."""
    context_shape: tuple[int, int]

    @property
    def shared(self) -> bool:
        """True if two rows share a context."""
        return sum(rows for rows, _ in self.blocks) > self.context_shape[0]


Map = Callable[[Tensor, Packing], Tensor]


def pack(inputs: Sequences, include_last: bool = False) -> Packing:
    """Lay out sequences without padding; ``include_last`` adds the state at the end of each trajectory.

    What follows the last state that is wanted is left out: a sequence's last sampled token, and what stands behind it.
    Sequences share the tokens before their first sampled one where these are equal. Reads the lengths on the host.
    """
    device = inputs.ids.device
    columns = torch.arange(inputs.ids.shape[1], device=device)
    context = inputs.context_lengths
    lengths = torch.where(inputs.sampled, columns, context[:, None]).amax(1)  # tokens up to the last state
    if include_last:
        lengths = torch.where(inputs.ends_trajectory, inputs.lengths, lengths)
    after = lengths - context
    longest_context, longest = torch.stack([context.max(), lengths.max()]).tolist()
    columns = columns[:longest]

    number, first = _distinct_contexts(inputs, context, longest_context)
    contexts = len(first)
    own_lengths = context[first]
    in_context = lengths_to_mask(own_lengths, longest_context)
    behind = (columns >= context[:, None]) & (columns < lengths[:, None])
    context_columns = columns[:longest_context].expand(contexts, -1)
    context_ids = inputs.ids[first, :longest_context][in_context]
    ids = torch.cat([context_ids, inputs.ids[:, :longest][behind]])
    positions = torch.cat([context_columns[in_context], columns.expand(len(lengths), -1)[behind]])
    context_tokens = len(context_ids)
    context_start = own_lengths.cumsum(0) - own_lengths
    behind_start = context_tokens + after.cumsum(0) - after

    def place_of(rows: Tensor, places: Tensor) -> Tensor:  # where tokens of these rows stand among ``ids``
        of_context = context_start[number[rows]] + places
        return torch.where(places < context[rows], of_context, behind_start[rows] + places - context[rows])

    chosen = state_positions(inputs, longest, include_last).nonzero()
    states = place_of(chosen[:, 0], chosen[:, 1])

    blocks, members, slot_start = _blocks(lengths)
    # What stands in padding is read by nobody: any token will do.
    slots = [
        place_of(rows[:, None], columns[None, :width]).where(columns[:width] < lengths[rows, None], 0).flatten()
        for rows, (_, width) in zip(members, blocks, strict=True)
    ]
    of_contexts = (slot_start[first, None] + context_columns)[in_context]
    of_others = (slot_start[:, None] + columns)[behind]
    places = torch.cat([of_contexts, of_others])
    owners = torch.full((sum(rows * width for rows, width in blocks),), len(ids), device=device)
    owners[places] = torch.arange(len(ids), device=device)
    return Packing(
        ids,
        positions,
        states,
        torch.cat(slots),
        places,
        owners,
        blocks,
        [number[rows] for rows in members],
        context_tokens,
        in_context.flatten().nonzero().squeeze(1),
        (contexts, longest_context),
    )


def _distinct_contexts(inputs: Sequences, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return each sequence's context as a number below U, (N,), and the first sequence of each context, (U,)."""
    padded = inputs.ids[:, :width].masked_fill(~lengths_to_mask(lengths, width), 0)
    keyed = torch.cat([lengths[:, None], padded], dim=1)  # a pad id may be a token
    distinct, number = keyed.unique(dim=0, return_inverse=True)
    rows = torch.arange(len(lengths), device=lengths.device)
    first = torch.full((len(distinct),), len(lengths), device=lengths.device)
    return number, first.scatter_reduce(0, number, rows, "amin")


def _blocks(lengths: Tensor) -> tuple[list[tuple[int, int]], list[Tensor], Tensor]:
    """Cut rows of these lengths (N,) into blocks of rows of like length, which stand in slots one after the other.

    Return (rows, longest row) of each block, its rows' indices, and the first slot of each row, (N,).
    """
    order = torch.argsort(lengths, stable=True)
    ordered = lengths[order].tolist()
    cuts = [0]
    for place, length in enumerate(ordered):
        if length > BUCKET_RATIO * ordered[cuts[-1]]:
            cuts.append(place)
    ends = [*cuts[1:], len(ordered)]
    blocks = [(end - start, ordered[end - 1]) for start, end in zip(cuts, ends, strict=True)]
    members = [order[start:end] for start, end in zip(cuts, ends, strict=True)]
    slot_start, filled = torch.zeros_like(lengths), 0
    for rows, (count, width) in zip(members, blocks, strict=True):
        slot_start[rows] = filled + width * torch.arange(count, device=lengths.device)
        filled += count * width
    return blocks, members, slot_start


class _Linear(torch.autograd.Function):
    """A linear map of rows, whose gradient is its adjoint: both are given."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing, there: Map, back: Map) -> Tensor:
        ctx.adjoint = packing, back, there
        return there(rows, packing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Linear.apply(grad, *ctx.adjoint), None, None, None  # type: ignore[no-untyped-call]


def _spread(flat: Tensor, packing: Packing) -> Tensor:
    """Return flat tokens in slots."""
    return flat.index_select(0, packing.slots)


def _gather(slots: Tensor, packing: Packing) -> Tensor:
    """Return the adjoint of ``_spread``: the sum of what the rows of a context send back, a whole row at a time.

    What padding sends back is 0 and left out.
    """
    if not packing.shared:
        return slots.index_select(0, packing.places)
    contexts, width = packing.context_shape
    sums = slots.new_zeros(contexts, width, slots.shape[1])
    sizes = [rows * length for rows, length in packing.blocks]
    for block, (rows, length), numbers in zip(slots.split(sizes), packing.blocks, packing.block_contexts, strict=True):
        # Beyond a context's end stand a row's own tokens, whose sum is not read below.
        reach = min(width, length)
        sums[:, :reach].index_add_(0, numbers, block.view(rows, length, -1)[:, :reach])
    flat = slots.new_empty(len(packing.ids), slots.shape[1])
    count = packing.context_tokens
    torch.index_select(sums.view(contexts * width, -1), 0, packing.context_places, out=flat[:count])
    torch.index_select(slots, 0, packing.places[count:], out=flat[count:])
    return flat


def _read(slots: Tensor, packing: Packing) -> Tensor:
    """Return flat tokens from slots: each token is read in one slot."""
    return slots.index_select(0, packing.places)


def _write(flat: Tensor, packing: Packing) -> Tensor:
    """Return the adjoint of ``_read``: 0 in slots that nobody reads."""
    return torch.cat([flat, flat.new_zeros(1, flat.shape[1])]).index_select(0, packing.owners)


_current: ContextVar[Packing] = ContextVar("lmrl_packing")
calls_of_attention: ContextVar[list[Any] | None] = ContextVar("lmrl_packed_calls", default=None)


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
    packing, calls = _current.get(), calls_of_attention.get()
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
        slots = flat[0].transpose(0, 1).reshape(count, heads * width)
        slots = _Linear.apply(slots, packing, _spread, _gather)  # type: ignore[no-untyped-call]
        for part, (rows, length) in zip(slots.split(sizes), packing.blocks, strict=True):
            yield part.view(rows, length, heads, width).transpose(1, 2)

    outputs = []
    for q, k, v in zip(blocks(query), blocks(key), blocks(value), strict=True):
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1).flatten(1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    flat = _Linear.apply(joined, packing, _read, _write)  # type: ignore[no-untyped-call]
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


class PackedLayout:
    """Layout of models whose layers attend to all that came before; see the module."""

    name = "packed"
    linear_head = True

    def unsupported(self, model: Any) -> str:
        """Return why the model computes something else packed: found by its configuration and by trying."""
        from lmrl.models.layouts.packable import difference

        return difference(model)

    def cost(self, inputs: Sequences) -> int:
        """Return the tokens, those of equal prompts of trajectories once."""
        prompts, costs = inputs.prompts_and_costs()
        return sum(map(len, prompts)) + sum(costs)

    def split(self, inputs: Sequences, token_budget: int) -> list[Tensor]:
        """Return microbatches of at most so many tokens, where equal prompts count once.

        Trajectories with one prompt stay together where they fit into a microbatch, and are cut where they do not.
        Reads the prompts on the host.
        """
        groups, costs = inputs.prompts_and_costs()
        pieces: list[list[int]] = []
        left = 0
        for prompt, rows in groups.items():
            whole = len(prompt) + sum(costs[row] for row in rows)
            joined = bool(pieces) and whole <= left
            if joined:
                left -= len(prompt)
            for row in rows:
                if not joined or costs[row] > left:
                    pieces.append([])
                    left, joined = token_budget - len(prompt), True
                pieces[-1].append(row)
                left -= costs[row]
        return [torch.tensor(piece, device=inputs.ids.device) for piece in pieces]

    def states(self, inputs: Sequences, include_last: bool) -> States:
        """Return how to compute states of packed sequences."""
        packing = pack(inputs, include_last)

        def states(model: Any, need_logits: bool, need_hidden: bool) -> tuple[Tensor | None, Tensor | None]:
            hidden = packed_states(model, packing)
            return hidden, model.get_output_embeddings()(hidden) if need_logits else None

        return states


def packed_states(model: Any, packing: Packing) -> Tensor:
    """Return the last hidden states of a packing's states, (states, width)."""
    with packed_attention(model, packing):
        output = model.base_model(input_ids=packing.ids[None], position_ids=packing.positions[None], use_cache=False)
    states: Tensor = output.last_hidden_state[0].index_select(0, packing.states)
    return states
