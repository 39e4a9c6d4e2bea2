"""Logits processor of a policy that draws only what an older copy of it finds likely (Ramamurthy et al. 2023, sec. 4).

The mask policy's top-p set of each state is the support of the policy there: while tokens are drawn, step by step with
a cache, and when they are evaluated again, all at once. Leaves out: losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms import Sequences
from lmrl.engines import JointModel, SamplingSpec
from lmrl.models import PolicyModel, freeze_copy


class MaskPolicy:
    """A frozen copy of ``model`` whose ``top_p`` sets restrict a policy, under the temperature of ``spec``.

    Tokens that end a response always belong to a set, unless ``spec`` forbids them. Every ``update_every`` updates it
    becomes a copy of the policy again. ``autocast`` is the policy's precision.
    """

    def __init__(
        self,
        model: Any,
        spec: SamplingSpec,
        top_p: float,
        update_every: int = 10,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.policy = PolicyModel(freeze_copy(model))
        self.spec = replace(spec, top_p=top_p)
        self.update_every = update_every
        self.autocast = autocast
        self._ends = [token for token in spec.eos_ids if token not in spec.forbidden_ids]

    def sets(self, logits: Tensor) -> Tensor:
        """Return which tokens belong to the sets of the mask policy's ``logits`` (..., V), bool."""
        kept = self.spec.log_distribution(logits) > -torch.inf
        kept[..., [token for token in self._ends if token < kept.shape[-1]]] = True
        return kept

    def restrict(self, model: Any) -> RestrictedModel:
        """Return ``model`` for a decode engine, with logits of -inf outside the sets."""
        return RestrictedModel(model, self)

    @torch.no_grad()
    def support(self, inputs: Sequences) -> Tensor:
        """Return the sets before each sampled token, (N, V) bool, from one teacher-forced pass."""
        with self.autocast():
            return self.sets(self.policy(inputs).all_logits())

    def after_update(self, update: int, model: Any) -> None:
        """Become a copy of ``model``, if its time has come."""
        if update % self.update_every == 0:
            self.policy.model.load_state_dict(model.state_dict())

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the mask policy's weights."""
        return {name: parameter.detach() for name, parameter in self.policy.model.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back the weights that ``state_dict`` returned."""
        own = dict(self.policy.model.named_parameters())
        for name, tensor in state.items():
            own[name].data.copy_(tensor)


class RestrictedModel(JointModel):
    """Looks like a transformers model to a decode engine, and decodes two: the policy and its mask policy."""

    def __init__(self, model: Any, mask: MaskPolicy) -> None:
        super().__init__((model, mask.policy.model))
        self.mask = mask

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the policy's logits, -inf outside the mask policy's sets."""
        own, masking = logits
        return own.masked_fill(~self.mask.sets(masking), -torch.inf)
