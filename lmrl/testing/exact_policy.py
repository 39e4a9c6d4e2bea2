"""A policy on enumerated responses as optimizers see it, and the sets that restrict what it draws.

Leaves out: the enumeration and its measures (``exact``), training (``exact_training``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.algorithms.optimizer import LogitsProcessor
from lmrl.algorithms.sequences import Sequences, lengths_to_mask
from lmrl.models.policy import StateOutputs
from lmrl.models.text_policy import Reference, TextPolicy
from lmrl.plugins.specs import Needs
from lmrl.testing.exact import EnumeratedInputs, ExactProblem


class EnumeratedSupport:
    """A logits processor whose support is known before every token of every response: ``sets``, (N, T, V) bool."""

    def __init__(self, problem: ExactProblem, processor: LogitsProcessor) -> None:
        self.problem, self.processor = problem, processor
        self.sets = self._enumerate()

    def after_update(self, update: int, model: Any) -> None:
        """Let the processor follow the policy's language model."""
        self.processor.after_update(update, model)
        self.sets = self._enumerate()

    def support(self, inputs: Sequences) -> Tensor:
        """Return the tokens that may be drawn before each token of these responses, (N, V) bool."""
        assert isinstance(inputs, EnumeratedInputs)
        return self.sets[inputs.rows][self.problem.action_mask[inputs.rows]]

    def _enumerate(self) -> Tensor:
        mask = self.problem.action_mask
        flat = self.processor.support(self.problem.inputs)
        sets = torch.ones(*mask.shape, flat.shape[-1], dtype=torch.bool, device=flat.device)
        return sets.index_put(mask.nonzero(as_tuple=True), flat)


class EnumeratedPolicy(TextPolicy):
    """Asks the model about each response of a batch once, however often it was drawn: batches may be large."""

    def __init__(
        self,
        problem: ExactProblem,
        module: nn.Module,
        needs: Needs,
        support: EnumeratedSupport | None = None,
        with_heads: bool = False,
        others: Mapping[str, Reference] | None = None,
    ) -> None:
        sets = None if support is None else support.support
        super().__init__(module, problem.spec, bool(needs.values), with_heads, sets, others)
        self.problem = problem

    def states(self, inputs: Sequences) -> StateOutputs:
        """Return what the model says of the states before each response token."""
        assert isinstance(inputs, EnumeratedInputs)
        distinct, place = inputs.rows.unique(return_inverse=True)
        found = super().states(self.problem.inputs.select(distinct))
        lengths = self.problem.inputs.action_counts[distinct]
        first = lengths.cumsum(0) - lengths
        width = self.problem.action_mask.shape[1]
        places = first[place][:, None] + torch.arange(width, device=first.device)
        return found.at(places[lengths_to_mask(lengths[place], width)])
