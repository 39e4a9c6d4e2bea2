"""Layouts: how the sequences of a batch are put side by side for a forward pass.

A policy takes the first layout of ``LAYOUTS`` that computes its model's own states. Every other way to lay out
sequences, for a special family, say, is one more ``Layout``, which ``register`` puts before these.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from lmrl.algorithms.sequences import Sequences
from lmrl.errors import ModelError
from lmrl.models.layouts.packed import PackedLayout
from lmrl.models.layouts.padded import GeneralLayout, PaddedLayout

logger = logging.getLogger(__name__)

States = Callable[[Any, bool, bool], tuple[Tensor | None, Tensor | None]]
"""(model, need logits, need hidden states) -> the chosen states' last hidden states (N, width) and logits (N, V)."""


class Layout(Protocol):
    """Lays out sequences for a forward pass. Stateless: one object serves all models.

    ``linear_head`` is True if logits are the model's output embedding applied to the hidden states, and nothing more:
    log-probabilities are then computed of hidden states alone.
    """

    name: str
    linear_head: bool

    def unsupported(self, model: Any) -> str:
        """Return why the model's states would not be its own in this layout, or the empty string if they are."""
        ...

    def split(self, inputs: Sequences, token_budget: int) -> list[Tensor]:
        """Return the trajectories of each microbatch: index tensors that together hold every trajectory once.

        A microbatch costs at most ``token_budget``; one of a single trajectory may cost more.
        """
        ...

    def cost(self, inputs: Sequences) -> int:
        """Return the tokens that a forward pass over all of ``inputs`` computes, as ``split`` counts them."""
        ...

    def states(self, inputs: Sequences, include_last: bool) -> States:
        """Return how to compute the states before each sampled token, in row-major order.

        ``include_last`` adds the state at the end of each trajectory.
        """
        ...


LAYOUTS: list[Layout] = [PackedLayout(), PaddedLayout(), GeneralLayout()]
"""The known layouts, the fastest first."""


def register(layout: Layout) -> None:
    """Try ``layout`` before all others; it replaces one of its name."""
    LAYOUTS[:] = [layout, *(other for other in LAYOUTS if other.name != layout.name)]


@torch.no_grad()
def choose_layout(model: Any) -> Layout:
    """Return the first layout that supports the model; log the reasons against those before it, once per process.

    Raises ``ModelError`` with the reasons if there is none.
    """
    reasons: list[str] = []
    with torch.autocast(getattr(model, "device", torch.device("cpu")).type, enabled=False):
        for layout in LAYOUTS:
            reason = layout.unsupported(model)
            if not reason:
                if reasons:
                    _note(f"{type(model).__name__} is computed in the layout {layout.name}: {'; '.join(reasons)}")
                return layout
            reasons.append(f"{layout.name} does not support it ({reason})")
    raise ModelError(f"no layout supports {type(model).__name__}: {'; '.join(reasons)}; choose another model.")


@lru_cache
def _note(message: str) -> None:
    logger.warning(message)
