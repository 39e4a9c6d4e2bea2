"""LM head of a model: another one put in its place to be sampled and saved, and the trained one kept beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.errors import ModelError
from lmrl.models.head import head_is_linear

PREFIX = "language_model_head."
"""Prefix of the trained LM head in the file beside a checkpoint, whose own LM head is the one that is sampled."""


def output_embedding(model: Any) -> Tensor:
    """Return the output embedding, (V, width). The width is not hidden_size where a family projects it (OPT-350m)."""
    embedding = model.get_output_embeddings()
    if embedding is None:
        raise ModelError(
            f"the optimizer needs a value head, but {type(model).__name__} has no output embedding that says "
            "what one would read; choose a model with an LM head, or an optimizer without a value function, "
            "such as rloo or reinforce"
        )
    table: Tensor = embedding.weight
    return table


def require_linear_head(model: Any) -> nn.Linear:
    """Return the LM head; raises ``ModelError`` where logits are more than a linear map of the last hidden state."""
    head = model.get_output_embeddings()
    if not head_is_linear(model) or not isinstance(head, nn.Linear):
        raise ModelError(
            f"the logits of {model.config.model_type} models are more than a linear head on the last hidden state, so "
            "no other head can take its place in a checkpoint that transformers loads; choose a model with a plain "
            "head, a Llama, Qwen or GPT-2, say, or another optimizer"
        )
    return head


@contextmanager
def replaced_head(model: Any, head: nn.Linear) -> Iterator[Any]:
    """Let the model have another LM head for a while, which is tied to nothing. Its own one changes nothing."""
    own = model.get_output_embeddings()
    if head is own:
        yield model
        return
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    tied = [config.tie_word_embeddings for config in configs]
    model.set_output_embeddings(head)
    for config in configs:
        config.tie_word_embeddings = False
    try:
        yield model
    finally:
        model.set_output_embeddings(own)
        for config, was in zip(configs, tied, strict=True):
            config.tie_word_embeddings = was


def head_state(model: Any) -> dict[str, Tensor]:
    """Return the LM head's tensors by name; without its weight where that is the input embedding's."""
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    return {PREFIX + name: tensor for name, tensor in head.state_dict().items() if not (tied and name == "weight")}


@torch.no_grad()
def restore_head(model: Any, state: Mapping[str, Tensor]) -> None:
    """Give a model with a merged head the one of ``head_state`` back, tied again if it was."""
    head = model.get_output_embeddings()
    own = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    if "weight" not in own:
        head.weight = model.get_input_embeddings().weight
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = True
    head.load_state_dict(own, strict=False)
