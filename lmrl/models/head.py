"""Log-probabilities of sampled tokens straight from hidden states, a chunk of the vocabulary's logits at a time.

Leaves out heads with a bias or more than a linear map, and whole distributions: they go through logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

KEPT_ENTRIES = 2**26
"""Up to so many probabilities are kept for the backward pass (256 MiB); more are computed again, in chunks."""
CHUNK_ENTRIES = 2**24
"""Entries of a chunk of logits (64 MiB)."""


def head_logprobs(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log softmax(hidden @ weight.T / temperature)[ids] in float32, (N,), without a second (N, V) tensor.

    Shapes: hidden (N, width), weight (V, width), ids (N,). Can be differentiated twice (then by way of whole logits).
    """
    compute: Callable[..., Tensor] = _HeadLogprobs.apply
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        precision = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return compute(hidden.to(precision), weight.to(precision), ids, temperature)
    return compute(hidden, weight, ids, temperature)


def logits_later(head: nn.Linear, hidden: Tensor) -> Callable[[Tensor | slice], Tensor]:
    """Return how to compute the logits of some rows of ``hidden`` later, in the precision of now."""
    device = hidden.device.type
    enabled, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def logits(places: Tensor | slice) -> Tensor:
        with torch.autocast(device, dtype=precision, enabled=enabled):
            result: Tensor = head(hidden[places])
        return result

    return logits


class _HeadLogprobs(torch.autograd.Function):
    """With p the softmax, the gradient by the logits is (onehot(ids) - p) / temperature."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> Tensor:
        result = torch.empty(ids.shape, dtype=torch.float32, device=hidden.device)
        differentiated = any(ctx.needs_input_grad[:2])
        # Small enough to keep: one chunk, whose logits become what the backward pass needs.
        keeps = differentiated and len(ids) * len(weight) <= KEPT_ENTRIES
        step = max(1, len(ids)) if keeps else _rows_per_chunk(weight)
        kept = None
        for start in range(0, len(ids), step):
            rows = slice(start, start + step)
            logits = _logits(hidden[rows], weight, temperature)
            chosen, total = logits.gather(1, ids[rows, None]), logits.logsumexp(1, keepdim=True)
            result[rows] = (chosen - total).squeeze(1)
            if keeps:
                kept = _residual(logits, total, ids[rows])
        ctx.temperature = temperature
        ctx.save_for_backward(hidden, weight, ids, kept)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, ids, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return *_differentiable(hidden, weight, ids, ctx.temperature, grad), None, None
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        scale = (-grad / ctx.temperature)[:, None]
        by_hidden = torch.empty_like(hidden) if wants_hidden else None
        by_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        step = max(1, len(ids)) if kept is not None else _rows_per_chunk(weight)
        for start in range(0, len(ids), step):
            rows = slice(start, start + step)
            residual = kept
            if residual is None:
                logits = _logits(hidden[rows], weight, ctx.temperature)
                residual = _residual(logits, logits.logsumexp(1, keepdim=True), ids[rows])
            residual = residual.to(weight.dtype)
            if by_hidden is not None:
                by_hidden[rows] = (residual @ weight) * scale[rows]
            if by_weight is not None:
                scaled = hidden[rows] * scale[rows].to(hidden.dtype)
                if by_weight.dtype == weight.dtype:
                    by_weight.addmm_(residual.T, scaled)
                else:
                    by_weight += residual.T @ scaled
        return by_hidden, None if by_weight is None else by_weight.to(weight.dtype), None, None


def _rows_per_chunk(weight: Tensor) -> int:
    return max(1, CHUNK_ENTRIES // len(weight))


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    return logits if temperature == 1 else logits.div_(temperature)


def _residual(logits: Tensor, total: Tensor, ids: Tensor) -> Tensor:
    """Turn logits into softmax(logits) - onehot(ids), in their memory."""
    residual = logits.sub_(total).exp_()
    residual.scatter_add_(1, ids[:, None], residual.new_full((len(ids), 1), -1))
    return residual


def _differentiable(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Return both gradients by operations that can be differentiated again."""
    residual = ((hidden @ weight.T).float() / temperature).softmax(-1)
    residual = residual - torch.nn.functional.one_hot(ids, len(weight))
    by_logits = (residual * (-grad / temperature)[:, None]).to(weight.dtype)
    return by_logits @ weight, by_logits.T @ hidden


@torch.no_grad()
def head_is_linear(model: Any) -> bool:
    """Say whether the model's logits are just its output embedding applied to its last hidden state.

    Some families scale or cap logits after the head. Rather than list them, two tokens are tried both ways.
    """
    head = model.get_output_embeddings()
    if head is None or getattr(model, "base_model", model) is model:
        return False
    ids = torch.tensor([[1, 0]], device=model.device)
    # Enlarged, because small logits would pass under a cap unnoticed.
    hook = head.register_forward_pre_hook(lambda module, arguments: (100 * arguments[0],))
    try:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return bool(torch.allclose(head(hidden), model(input_ids=ids, use_cache=False).logits, rtol=1e-4, atol=1e-5))
    except (AttributeError, TypeError, RuntimeError):
        return False
    finally:
        hook.remove()
