"""Which models compute the same packed as padded: found by trying, and by what a short trial cannot see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.sequences import Sequences
from lmrl.models.packing import Packing, counted_attention, pack, packed_attention


def packed_states(model: Any, packing: Packing) -> Tensor:
    """Return the last hidden states of a packing's states, (states, width)."""
    with packed_attention(model, packing):
        output = model.base_model(input_ids=packing.ids[None], position_ids=packing.positions[None], use_cache=False)
    states: Tensor = output.last_hidden_state[0].index_select(0, packing.states)
    return states


@torch.no_grad()
def is_packable(model: Any) -> bool:
    """Say whether the model's hidden states are the same packed as row by row.

    They are where every layer attends to all that came before through transformers' ``AttentionInterface`` and
    positions are told by ``position_ids``. Three rows of five tokens are tried both ways; windows of attention, which
    so short a trial does not fill, are looked up in the configuration.
    """
    config = getattr(model, "config", None)
    if config is None or getattr(model, "base_model", model) is model or not attends_to_everything(config):
        return False
    embedding = model.get_input_embeddings().weight
    tokens = (1 + 7 * torch.arange(11, device=embedding.device)) % len(embedding)
    own = tokens.tolist()
    pairs = [(own[:2], own[3:6]), (own[:2], own[6:9]), (own[2:3], own[9:])]  # two rows share a prompt
    inputs = Sequences.of_pairs(pairs, embedding.device)
    packing = pack(inputs, include_last=True)
    try:
        with torch.autocast(embedding.device.type, enabled=False):
            with counted_attention() as calls:
                packed = packed_states(model, packing).float()
            rows = []
            for prompt, response in pairs:
                ids = torch.tensor([prompt + response], device=embedding.device)
                states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
                rows.append(states[len(prompt) - 1 :].float())
    except Exception:  # whatever a family's own code makes of it
        return False
    if len(calls) != config.get_text_config().num_hidden_layers:
        return False
    padded = torch.cat(rows)
    tolerance = 1e-5 if embedding.dtype == torch.float32 else 3e-2
    return bool((packed - padded).abs().max() <= tolerance * padded.abs().max())


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
