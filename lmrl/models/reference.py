"""The reference model of the KL penalty: a frozen copy, or the policy's backbone with its adapter switched off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from lmrl.algorithms.sequences import Sequences
from lmrl.engines.protocol import SamplingSpec
from lmrl.models.loading import freeze_copy
from lmrl.models.policy import PolicyModel
from lmrl.models.text_policy import score_logprobs


class Reference(Protocol):
    """Reference model, given for the time of a scoring pass."""

    def module(self) -> Any:
        """Return a context that gives a module to pass to ``lmrl.models.text_policy.score_logprobs``."""
        ...


class FrozenReference:
    """A frozen copy of ``model``."""

    def __init__(self, model: Any) -> None:
        self.policy = PolicyModel(freeze_copy(model))

    @contextmanager
    def module(self) -> Iterator[nn.Module]:
        """Give the copy."""
        yield self.policy


class AdapterOff:
    """The policy's own backbone: it needs no memory, and is the initial policy bit for bit."""

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy

    @contextmanager
    def module(self) -> Iterator[nn.Module]:
        """Give the policy with its adapter switched off."""
        assert self.policy.adapter is not None
        with self.policy.adapter.off():
            yield self.policy


def score_reference(reference: Reference, inputs: Sequences, spec: SamplingSpec, token_budget: int) -> Tensor:
    """Return the reference's log-probabilities of the sampled tokens under ``spec``, (B, T)."""
    with reference.module() as module:
        return score_logprobs(module, inputs, spec, token_budget)


def make_reference(policy: PolicyModel, other: Any = None) -> Reference:
    """Return the reference of a policy that has not been trained yet, or a frozen copy of ``other``, a named model."""
    if other is None and policy.adapter is not None:
        return AdapterOff(policy)
    if other is not None:
        return FrozenReference(other)
    with policy.extracted() as model:  # with the LM head that is sampled
        return FrozenReference(model)
