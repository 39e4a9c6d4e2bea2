"""A policy on enumerated responses as optimizers see it, and the sets that restrict what it draws.

Leaves out: the enumeration and its measures (``exact``), training (``exact_training``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmrl.algorithms.rows import lengths_to_mask
from lmrl.algorithms.sequences import Sequences
from lmrl.models import PolicyModel
from lmrl.models.masked import MaskPolicy
from lmrl.models.policy import StateOutputs
from lmrl.models.text_policy import TextPolicy
from lmrl.plugins.specs import Needs
from lmrl.testing.exact import EnumeratedInputs, ExactProblem


class EnumeratedMask:
    """A mask policy (``Needs.mask_policy``) whose top-p sets are known before every token of every response.

    ``sets`` is (N, T, V) bool.
    """

    def __init__(self, problem: ExactProblem, policy: PolicyModel, top_p: float) -> None:
        self.problem = problem
        self.mask = MaskPolicy(policy.model, problem.spec, top_p)
        self.sets = self._enumerate()

    def refresh(self, policy: PolicyModel) -> None:
        """Become a copy of ``policy`` as it is now."""
        self.mask.refresh(policy.model)
        self.sets = self._enumerate()

    def support(self, inputs: Sequences) -> Tensor:
        """Return the sets before each token of these responses, (N, V) bool."""
        assert isinstance(inputs, EnumeratedInputs)
        return self.sets[inputs.rows][self.problem.action_mask[inputs.rows]]

    @torch.no_grad()
    def _enumerate(self) -> Tensor:
        return self.mask.sets(self.problem.table(self.mask.policy).logits)


class EnumeratedPolicy(TextPolicy):
    """Asks the model about each response of a batch once, however often it was drawn: batches may be large."""

    def __init__(
        self,
        problem: ExactProblem,
        module: nn.Module,
        needs: Needs,
        mask: EnumeratedMask | None = None,
        with_heads: bool = False,
    ) -> None:
        super().__init__(module, problem.spec, bool(needs.values), with_heads, None if mask is None else mask.support)
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
