"""Number of tokens that fit into one forward and backward pass: measured on a few tokens, not set by hand.

Leaves out what the optimizer keeps and what a kernel needs while it runs: the share of free memory allows for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from lmrl.algorithms.sequences import Sequences
from lmrl.models.policy import PolicyModel
from lmrl.training.update_settings import TrainSettings

CPU_TOKENS, DEVICE_TOKENS = 2048, 16384
"""Tokens of a microbatch where nothing is said: on a CPU what measured fastest, elsewhere if its memory is unknown."""
FREE_SHARE = 0.4
"""Share of a GPU's free memory, less gradients and AdamW's moments, that autograd may keep of a microbatch."""
GRAPH_SHARE = 0.25
"""Share of the free memory that graphs may fill which are kept to be differentiated several times."""
GIB = 2**30


def microbatch_budget(settings: TrainSettings, device: torch.device, model: Any = None) -> int:
    """Return the tokens per forward and backward pass: as set, or as many as fit into the memory that is set or free.

    ``model`` is the policy to measure; one that is no ``PolicyModel`` gets what its device gets without a measurement.
    """
    if settings.microbatch_tokens:
        return settings.microbatch_tokens
    if not isinstance(model, PolicyModel):
        return CPU_TOKENS if device.type == "cpu" else DEVICE_TOKENS
    if settings.microbatch_memory:
        return max(1, int(settings.microbatch_memory * GIB / bytes_per_token(model)))
    if device.type != "cuda":
        return CPU_TOKENS if device.type == "cpu" else DEVICE_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad and p.grad is None)
    return max(1, int(FREE_SHARE * max(free - 3 * trained, 0) / bytes_per_token(model)))


def bytes_per_token(model: PolicyModel) -> float:
    """Return the bytes that autograd keeps of the policy's log-probabilities and values, per token of a microbatch.

    Four responses to one prompt are tried, so a token of a prompt is attended to by four rows; parameters do not count.
    """
    device = next(model.parameters()).device
    context = getattr(model.model.config.get_text_config(), "max_position_embeddings", None) or 32
    size = max(1, min(16, context // 2))
    inputs = Sequences.of_pairs([([0] * size, [0] * size)] * 4, device)
    with torch.enable_grad(), saved_bytes(model.parameters()) as count:
        model(inputs, temperature=1.0, need_values=model.value_head is not None)
    return count() / model.layout.cost(inputs)


def graph_allowance(settings: TrainSettings, device: torch.device) -> float:
    """Return the bytes of graphs that may be kept side by side: the memory that is set, or a share of what is free."""
    if settings.microbatch_memory:
        return settings.microbatch_memory * GIB
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return GRAPH_SHARE * free


@contextmanager
def saved_bytes(parameters: Iterable[torch.Tensor]) -> Iterator[Callable[[], int]]:
    """Count the bytes that autograd keeps of what is computed within, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    held: dict[int, int] = {}
    kept = []  # alive until the end, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)
        held[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself: a node that saves its own output would hold it, it the node, and neither were let go.
        return tensor.detach()

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield lambda: sum(count for place, count in held.items() if place not in own)
    finally:
        kept.clear()  # the hooks live as long as the graph
