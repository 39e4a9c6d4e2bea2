"""Packed sequences: all tokens of a microbatch in one row, a prompt that several sequences share only once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmrl.algorithms.sequences import Sequences
from lmrl.models.head import head_is_linear
from lmrl.models.packing import Packing, counted_attention, pack, packed_attention

if TYPE_CHECKING:
    from lmrl.models.layouts import States


class PackedLayout:
    """Layout of models whose layers attend to all that came before; see ``lmrl.models.packing``."""

    name = "packed"
    linear_head = True

    def unsupported(self, model: Any) -> str:
        """Return why the model computes something else packed: found by its configuration and by trying."""
        config = getattr(model, "config", None)
        if config is None or getattr(model, "base_model", model) is model:
            return "it is no transformers model with a trunk"
        if not attends_to_everything(config):
            return "a layer does not attend to the whole context"
        if not head_is_linear(model):
            return "its logits are more than a linear head on its hidden states"
        return _difference(model)

    def cost(self, inputs: Sequences) -> int:
        """Return the tokens, those of equal prompts of trajectories once."""
        prompts, costs = _prompts_and_costs(inputs)
        return sum(map(len, prompts)) + sum(costs)

    def split(self, inputs: Sequences, token_budget: int) -> list[Tensor]:
        """Return microbatches of at most so many tokens, where equal prompts count once.

        Trajectories with one prompt stay together where they fit into a microbatch, and are cut where they do not.
        Reads the prompts on the host.
        """
        groups, costs = _prompts_and_costs(inputs)
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


def _prompts_and_costs(inputs: Sequences) -> tuple[dict[tuple[int, ...], list[int]], list[int]]:
    """Return the trajectories by their first sequence's context, and the tokens of each without this context."""
    context_lengths = inputs.context_lengths
    ids, trajectory = inputs.ids.tolist(), inputs.trajectory.tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    costs: list[int] = []
    for place, (length, context) in enumerate(zip(inputs.lengths.tolist(), context_lengths.tolist(), strict=True)):
        if trajectory[place] < len(costs):
            costs[-1] += length
        else:
            groups.setdefault(tuple(ids[place][:context]), []).append(len(costs))
            costs.append(length - context)
    return groups, costs


def packed_states(model: Any, packing: Packing) -> Tensor:
    """Return the last hidden states of a packing's states, (states, width)."""
    with packed_attention(model, packing):
        output = model.base_model(input_ids=packing.ids[None], position_ids=packing.positions[None], use_cache=False)
    states: Tensor = output.last_hidden_state[0].index_select(0, packing.states)
    return states


def _difference(model: Any) -> str:
    """Return how hidden states differ packed from row by row, or the empty string if they are the same.

    Three rows of five tokens are tried both ways; windows of attention, which so short a trial does not fill, are
    looked up in the configuration.
    """
    embedding = model.get_input_embeddings().weight
    tokens = (1 + 7 * torch.arange(11, device=embedding.device)) % len(embedding)
    own = tokens.tolist()
    pairs = [(own[:2], own[3:6]), (own[:2], own[6:9]), (own[2:3], own[9:])]  # two rows share a prompt
    inputs = Sequences.of_pairs(pairs, embedding.device)
    packing = pack(inputs, include_last=True)
    try:
        with counted_attention() as calls:
            packed = packed_states(model, packing).float()
        rows = []
        for prompt, response in pairs:
            ids = torch.tensor([prompt + response], device=embedding.device)
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            rows.append(states[len(prompt) - 1 :].float())
    except Exception as error:  # whatever a family's own code makes of it
        return f"it raises {type(error).__name__} on packed rows"
    if len(calls) != model.config.get_text_config().num_hidden_layers:
        return "not every layer attends through the AttentionInterface of transformers"
    padded = torch.cat(rows)
    tolerance = 1e-5 if embedding.dtype == torch.float32 else 3e-2
    same = bool((packed - padded).abs().max() <= tolerance * padded.abs().max())
    return "" if same else "its hidden states are others on packed rows"


def attends_to_everything(config: Any) -> bool:
    """Say whether no layer has a window shorter than the context, or another kind of attention."""
    config = config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)

    def short(name: str) -> bool:
        window = getattr(config, name, None)
        return window is not None and window > 0 and (context is None or window < context)

    if short("attention_chunk_size"):
        return False
    if not short("sliding_window"):
        kinds = set(getattr(config, "layer_types", None) or ())
        return kinds <= {"full_attention", "sliding_attention", "attention"}
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds:
        return kinds <= {"full_attention", "attention"}
    return getattr(config, "use_sliding_window", True) is False
