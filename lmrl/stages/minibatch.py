"""A minibatch as an optimizer with a step of its own sees it: gradients, means and Hessians over all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmrl.ops import aggregate_losses
from lmrl.optimizer import Policy

Losses = Callable[[Policy, Any], Tensor]


class _Trainer(Protocol):
    optimizer: Any
    policy: Any
    torch_optimizer: torch.optim.Optimizer
    accelerator: Any


class WholeMinibatch:
    """A ``lmrl.optimizer.Minibatch`` over microbatches and ranks."""

    def __init__(
        self,
        trainer: _Trainer,
        batch: Any,
        microbatches: list[Tensor],
        counts: tuple[Tensor, Tensor],
        share_of_loss: Callable[[Any], Tensor],
        epoch: int,
    ) -> None:
        self.trainer = trainer
        self.batch = batch
        self.microbatches = microbatches
        self.counts = counts
        self.share_of_loss = share_of_loss
        self.epoch = epoch
        groups = trainer.torch_optimizer.param_groups
        self.trained: list[nn.Parameter] = [
            parameter
            for group in groups
            if group.get("role", "policy") == "policy"
            for parameter in group["params"]
            if parameter.grad is not None
        ]

    @property
    def gradient(self) -> Tensor:
        """Gradient of the aggregated loss, (N,), clipped as the run's settings say."""
        return _flat([parameter.grad for parameter in self.trained])

    def loss(self) -> float:
        """Return the aggregated loss, the KL in it included, at the current parameters."""
        return self._sum(self._each(self.share_of_loss))

    def mean(self, losses: Losses) -> float:
        """Return the aggregate of ``losses(policy, batch)`` at the current parameters."""
        return self._sum(self._shares(losses))

    def hessian(self, losses: Losses) -> Callable[[Tensor], Tensor]:
        """Return the product of that aggregate's Hessian and a vector (Pearlmutter 1994): two backward passes.

        A single microbatch goes through the model and the first of them once for all products; of several ones, whose
        graphs need not fit into memory together, each is computed anew.
        """
        alone = len(self.microbatches) == 1
        kept = list(self._gradients(losses)) if alone else []

        def product(vector: Tensor) -> Tensor:
            total = torch.zeros_like(vector)
            for first in kept if alone else self._gradients(losses):
                if first.requires_grad:  # otherwise it is constant, and has no derivative
                    second = torch.autograd.grad(
                        first @ vector, self.trained, retain_graph=alone, materialize_grads=True
                    )
                    total += _flat(second)
            reduced: Tensor = self.trainer.accelerator.reduce(total, reduction="sum")
            return reduced

        return product

    def _gradients(self, losses: Losses) -> Iterator[Tensor]:
        """Yield each microbatch's gradient of its share, itself to be differentiated."""
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            for share in self._shares(losses):
                yield _flat(torch.autograd.grad(share, self.trained, create_graph=True, materialize_grads=True))

    def parameters(self) -> Tensor:
        """Return a copy of the policy's parameters, (N,)."""
        return _flat([parameter.detach() for parameter in self.trained])

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        """Set the policy's parameters to ``vector``."""
        start = 0
        for parameter in self.trained:
            end = start + parameter.numel()
            parameter.copy_(vector[start:end].view_as(parameter))
            start = end

    @contextmanager
    def at(self, vector: Tensor) -> Iterator[None]:
        """Let the policy be the one with these parameters for a while."""
        now = self.parameters()
        self.trainer.policy.forget()
        self.assign(vector)
        try:
            yield
        finally:
            self.assign(now)
            self.trainer.policy.forget()

    def drop_gradient(self) -> None:
        """Leave the policy's parameters to what ``step`` did: the optimizer of torch skips what has no gradient."""
        for parameter in self.trained:
            parameter.grad = None

    def _shares(self, losses: Losses) -> Iterator[Tensor]:
        """Yield each microbatch's share of the aggregate of ``losses``."""
        trainer = self.trainer
        aggregation = trainer.optimizer.settings.loss_aggregation

        def share(part: Any) -> Tensor:
            return aggregate_losses(losses(trainer.policy, part), part.action_mask, aggregation, *self.counts)

        return self._each(share)

    def _each(self, share: Callable[[Any], Tensor]) -> Iterator[Tensor]:
        """Yield ``share`` of each microbatch, without exchanging gradients between ranks."""
        for rows in self.microbatches:
            with self._unsynchronised():
                yield share(self.batch.select(rows))
            self.trainer.policy.forget()

    @torch.no_grad()
    def _sum(self, shares: Iterator[Tensor]) -> float:
        """Return the sum over microbatches and ranks."""
        total = torch.zeros((), device=self.batch.action_mask.device)
        for share in shares:
            total += share
        return float(self.trainer.accelerator.reduce(total, reduction="sum"))

    @contextmanager
    def _unsynchronised(self) -> Iterator[None]:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            yield
            return
        with accelerator.no_sync(self.trainer.policy.module):
            yield


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
