"""A policy that may only draw what an older copy of it finds likely (NLPO; Ramamurthy et al. 2023, sec. 4).

The mask policy's top-p set of each state is the support of the policy there: while tokens are drawn, step by step with
a cache, and when they are evaluated again, all at once. Leaves out: losses.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.sequences import Sequences
from lmrl.engines.local.cache import JointCache
from lmrl.engines.spec import SamplingSpec
from lmrl.errors import ResumeError
from lmrl.models.loading import freeze_copy
from lmrl.models.policy import PolicyModel, StateOutputs
from lmrl.text.folders import MASK_FILE


class MaskPolicy:
    """A frozen copy of ``model`` whose ``top_p`` sets restrict a policy, under the temperature of ``spec``.

    Tokens that end a response always belong to a set, unless ``spec`` forbids them. ``autocast`` is what the policy
    computes in.
    """

    def __init__(
        self,
        model: Any,
        spec: SamplingSpec,
        top_p: float,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.policy = PolicyModel(freeze_copy(model))
        self.spec = replace(spec, top_p=top_p)
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
        """Return the sets before each sampled token, (N, V) bool, from one teacher-forced pass.

        Sampled tokens were drawn from their sets; they belong to them here too where rounding, which differs from that
        of a cached step, would leave out the last one of a set.
        """
        with self.autocast():
            outputs: StateOutputs = self.policy(inputs)
        assert outputs.logits is not None
        return self.sets(outputs.logits).scatter(1, inputs.actions[:, None], True)

    def refresh(self, model: Any) -> None:
        """Become a copy of ``model`` as it is now."""
        self.policy.model.load_state_dict(model.state_dict())

    def save(self, folder: Path) -> None:
        """Write the mask policy's weights beside a checkpoint."""
        from safetensors.torch import save_file

        tensors = {name: p.detach().clone().contiguous() for name, p in self.policy.model.named_parameters()}
        save_file(tensors, folder / MASK_FILE)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote; raises ``ResumeError`` where there is none."""
        from safetensors.torch import load_file

        file = folder / MASK_FILE
        if not file.exists():
            raise ResumeError(f"{folder} holds no {MASK_FILE}, so the run would not go on with the mask that it had")
        own = dict(self.policy.model.named_parameters())
        for name, tensor in load_file(file).items():
            own[name].data.copy_(tensor)


class RestrictedModel:
    """Looks like a transformers model to a decode engine, and decodes two: the policy and its mask policy."""

    def __init__(self, model: Any, mask: MaskPolicy) -> None:
        self.mask = mask
        self.parts = (model, mask.policy.model)
        self.device = model.device
        self.config = model.config

    def __call__(self, *, past_key_values: JointCache | None = None, **inputs: Any) -> SimpleNamespace:
        """Return ``logits`` of the policy, -inf outside the mask policy's sets; without a cache, of whole rows."""
        if past_key_values is None:
            own, masking = (part(**inputs).logits for part in self.parts)
        else:
            own, masking = (
                part(past_key_values=cache, **inputs).logits
                for part, cache in zip(self.parts, past_key_values.caches, strict=True)
            )
        return SimpleNamespace(logits=own.masked_fill(~self.mask.sets(masking), -torch.inf))
