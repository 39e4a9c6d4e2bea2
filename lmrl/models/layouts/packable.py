"""Models that compute the same packed as padded: found by their configuration, and by trying."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lmrl.algorithms.sequences import Sequences
from lmrl.models.head import head_is_linear
from lmrl.models.layouts.packed import calls_of_attention, pack, packed_states


def difference(model: Any) -> str:
    """Return why the model computes something else packed, or the empty string if it does not."""
    config = getattr(model, "config", None)
    if config is None or getattr(model, "base_model", model) is model:
        return "it is no transformers model with a trunk"
    if not attends_to_everything(config):
        return "a layer does not attend to the whole context"
    if not head_is_linear(model):
        return "its logits are more than a linear head on its hidden states"
    return _tried(model)


def _tried(model: Any) -> str:
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


@contextmanager
def counted_attention() -> Iterator[list[Any]]:
    """Give a list of the attention modules that attend packed within a ``with``, one entry a call."""
    calls: list[Any] = []
    token = calls_of_attention.set(calls)
    try:
        yield calls
    finally:
        calls_of_attention.reset(token)
