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
        self, trainer: _Trainer, batch: Any, microbatches: list[Tensor], token_count: Tensor, row_count: Tensor
    ) -> None:
        self.trainer = trainer
        self.batch = batch
        self.microbatches = microbatches
        self.counts = token_count, row_count
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

    @torch.no_grad()
    def mean(self, losses: Losses) -> float:
        """Return the aggregate of ``losses(policy, batch)`` at the current parameters."""
        total = torch.zeros((), device=self.batch.action_mask.device)
        for share in self._shares(losses):
            total += share
        return float(self.trainer.accelerator.reduce(total, reduction="sum"))

    def hessian_product(self, losses: Losses, vector: Tensor) -> Tensor:
        """Return the Hessian of that aggregate times ``vector`` (Pearlmutter 1994): two backward passes."""
        total = torch.zeros_like(vector)
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            for share in self._shares(losses):
                first = torch.autograd.grad(share, self.trained, create_graph=True, materialize_grads=True)
                second = torch.autograd.grad(_flat(first) @ vector, self.trained, materialize_grads=True)
                total += _flat(second)
        reduced: Tensor = self.trainer.accelerator.reduce(total, reduction="sum")
        return reduced

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

    def drop_gradient(self) -> None:
        """Leave the policy's parameters to what ``step`` did: the optimizer of torch skips what has no gradient."""
        for parameter in self.trained:
            parameter.grad = None

    def _shares(self, losses: Losses) -> Iterator[Tensor]:
        """Yield each microbatch's share of the aggregate."""
        trainer = self.trainer
        for rows in self.microbatches:
            part = self.batch.select(rows)
            with self._unsynchronised():
                column = losses(trainer.policy, part)
                yield aggregate_losses(
                    column, part.action_mask, trainer.optimizer.settings.loss_aggregation, *self.counts
                )
            trainer.policy.forget()

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
