"""Types and shapes of what an optimizer returns; each function returns a sentence about what is wrong, or ""."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.optimizer import Loss, PolicyOptimizer
from lmrl.algorithms.rollout import Advantages, Rollout


def wrong_informative(optimizer: PolicyOptimizer, rollout: Rollout) -> str:
    """Check what ``informative`` returns: bool, (B,)."""
    if not optimizer.defines("informative"):
        return ""
    found = optimizer.informative(rollout.scores, rollout.group)
    if isinstance(found, Tensor) and found.dtype == torch.bool and found.shape == rollout.scores.shape:
        return ""
    return f"informative(scores, group) returned {kind_of(found)}; expected a bool tensor of shape (B,), one per row"


def wrong_advantages(found: Any, mask: Tensor) -> str:
    """Check what ``advantages`` returns, by the rollout's mask, (B, T)."""
    if not isinstance(found, Advantages):
        return f"advantages(rollout) returned {kind_of(found)}; expected lmrl.Advantages, so return Advantages(tensor)"
    if not isinstance(found.advantages, Tensor) or found.advantages.shape != mask.shape:
        return (
            f"advantages(rollout) returned advantages of {kind_of(found.advantages)}; expected a tensor of shape "
            f"(B, T) = {tuple(mask.shape)}, one per action: spread one per row with column[:, None] * mask"
        )
    if not bool(torch.isfinite(found.advantages[mask]).all()):
        return "advantages(rollout) holds a NaN or an infinity; expected finite numbers: look for a division by 0"
    return wrong_columns("the extra columns of advantages()", found.extra, mask) or wrong_columns(
        "the metrics of advantages()", found.metrics, mask
    )


def wrong_loss(found: Any, mask: Tensor) -> str:
    """Check what ``loss`` returns, by the batch's mask, (B, T)."""
    if not isinstance(found, Loss):
        return f"loss(policy, batch) returned {kind_of(found)}; expected lmrl.Loss, so return Loss(losses)"
    if not isinstance(found.losses, Tensor) or found.losses.shape not in (mask.shape, mask.shape[:1]):
        return (
            f"loss(policy, batch) returned losses of {kind_of(found.losses)}; expected one per token, "
            f"{tuple(mask.shape)}, or one per row, {tuple(mask.shape[:1])}: do not average, the trainer does"
        )
    if not found.losses.requires_grad:
        return (
            "the losses carry no gradient; expected one that reaches the policy: compute them from "
            "policy.evaluate(batch) without detach(), .data or torch.no_grad()"
        )
    within = found.losses[mask if found.losses.ndim == 2 else mask.any(1)]
    if not bool(torch.isfinite(within).all()):
        return "the losses hold a NaN or an infinity; expected finite numbers: look for a division or logarithm of 0"
    return wrong_columns("the metrics of loss()", found.metrics, mask)


def wrong_columns(where: str, columns: Any, mask: Tensor) -> str:
    """Check columns to log or to keep: (B, T) or (B,) each."""
    if not isinstance(columns, Mapping):
        return f"{where} are {kind_of(columns)}; expected a mapping of names to tensors"
    for name, column in columns.items():
        shaped = isinstance(column, Tensor) and column.shape in (mask.shape, mask.shape[:1])
        if not isinstance(name, str) or not shaped:
            return (
                f"{where} hold {name!r}, {kind_of(column)}; expected a tensor of shape {tuple(mask.shape)} or "
                f"{tuple(mask.shape[:1])}, not averaged: the trainer averages it over all tokens or rows"
            )
    return ""


def wrong_state(value: Any, where: str) -> str:
    """Check that ``state_dict`` holds nothing but numbers, strings, lists, dicts and tensors."""
    if value is None or isinstance(value, str | int | float | bool | Tensor):
        return ""
    if isinstance(value, Mapping):
        pairs = [(f"{where}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{where}[{place}]", item) for place, item in enumerate(value)]
    else:
        return (
            f"{where} is {kind_of(value)}; expected numbers, strings, lists, dicts and tensors, because a checkpoint "
            "holds no other objects: take it apart in state_dict() and rebuild it in load_state_dict()"
        )
    return next((odd for place, item in pairs if (odd := wrong_state(item, place))), "")


def kind_of(value: Any) -> str:
    """Say what a value is, as messages do."""
    return (
        f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
        if isinstance(value, Tensor)
        else (f"{type(value).__name__}")
    )
