"""Padded sequences: one row each, padded on the right.

A causal model then needs no attention mask, and no row sees its padding.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lmrl.algorithms.sequences import Sequences, split_by_length, state_positions
from lmrl.models.head import head_is_linear

if TYPE_CHECKING:
    from lmrl.models.layouts import States


class GeneralLayout:
    """Layout of every causal language model: the whole model computes the logits of all positions."""

    name = "general"
    linear_head = False

    def unsupported(self, model: Any) -> str:
        """Return nothing: every causal language model is supported."""
        return ""

    def cost(self, inputs: Sequences) -> int:
        """Return the positions, padding included."""
        return len(inputs.lengths) * int(inputs.lengths.max())

    def split(self, inputs: Sequences, token_budget: int) -> list[Tensor]:
        """Return trajectories of like length: (sequences x longest sequence) is at most the budget."""
        if inputs.count == len(inputs.lengths):
            return split_by_length(inputs.lengths, token_budget)
        longest = inputs.lengths.new_zeros(inputs.count).scatter_reduce(0, inputs.trajectory, inputs.lengths, "amax")
        return split_by_length(longest, token_budget, inputs.sequence_counts)

    def states(self, inputs: Sequences, include_last: bool) -> States:
        """Return how to compute states of padded sequences."""
        rows = inputs.ids[:, : int(inputs.lengths.max())]
        chosen = state_positions(inputs, rows.shape[1], include_last)
        return partial(linear_states if self.linear_head else general_states, chosen, {"input_ids": rows})


class PaddedLayout(GeneralLayout):
    """Layout of models with a linear head, which runs on the chosen states alone."""

    name = "padded"
    linear_head = True

    def unsupported(self, model: Any) -> str:
        """Return whether the head is more than linear: found by trying."""
        return "" if head_is_linear(model) else "its logits are more than a linear head on its hidden states"


def general_states(
    chosen: Tensor, given: dict[str, Tensor], model: Any, need_logits: bool, need_hidden: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the last hidden states and logits of the positions where ``chosen`` (B, L) is true, by the whole model.

    ``given`` are arguments of the model.
    """
    output = model(**given, use_cache=False, output_hidden_states=need_hidden)
    hidden = output.hidden_states[-1][chosen] if need_hidden else None
    return hidden, output.logits[chosen] if need_logits else None


def linear_states(
    chosen: Tensor, given: dict[str, Tensor], model: Any, need_logits: bool, need_hidden: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the same of a model with a linear head, which runs on the chosen positions alone."""
    hidden = model.base_model(**given, use_cache=False).last_hidden_state[chosen]
    return hidden, model.get_output_embeddings()(hidden) if need_logits else None
