"""A minibatch as an optimizer with a step of its own sees it: gradients, means and Hessians over all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmrl.algorithms.ops import aggregate_losses
from lmrl.algorithms.optimizer import Policy
from lmrl.algorithms.rollout import loss_mask
from lmrl.training.devices import gradient_sync
from lmrl.training.memory import graph_allowance, saved_bytes
from lmrl.training.update_settings import TrainSettings

Losses = Callable[[Policy, Any], Tensor]


class _Trainer(Protocol):
    optimizer: Any
    policy: Any
    torch_optimizer: torch.optim.Optimizer
    accelerator: Any
    settings: TrainSettings


class WholeMinibatch:
    """A ``lmrl.algorithms.optimizer.Minibatch`` over microbatches and ranks."""

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
        return self._sum(self._each(self.share_of_loss, self.microbatches))

    def mean(self, losses: Losses) -> float:
        """Return the aggregate of ``losses(policy, batch)`` at the current parameters."""
        return self._sum(self._shares(losses))

    def hessian(self, losses: Losses) -> Callable[[Tensor], Tensor]:
        """Return the product of that aggregate's Hessian and a vector (Pearlmutter 1994): two backward passes.

        The microbatches whose graphs fit into memory together go through the model and the first pass once for all
        products; the others anew for each.
        """
        kept = self._kept_gradients(losses)
        rest = self.microbatches[len(kept) :]

        def product(vector: Tensor) -> Tensor:
            total = torch.zeros_like(vector)
            for first in kept:
                total += self._derivative(first @ vector, retain_graph=True)
            for first in self._gradients(losses, rest):
                total += self._derivative(first @ vector)
            reduced: Tensor = self.trainer.accelerator.reduce(total, reduction="sum")
            return reduced

        return product

    def _kept_gradients(self, losses: Losses) -> list[Tensor]:
        """Return the gradients of the first microbatches, as many as may be kept with their graphs."""
        alone = len(self.microbatches) == 1  # its graph is needed in any case
        room = graph_allowance(self.trainer.settings, self.batch.action_mask.device)
        gradients, kept = self._gradients(losses, self.microbatches), []
        for _ in self.microbatches:
            with saved_bytes(self.trained) as count:
                first = next(gradients)
            room -= count()
            if room < 0 and not alone:
                break
            kept.append(first)
        return kept

    def _gradients(self, losses: Losses, microbatches: list[Tensor]) -> Iterator[Tensor]:
        """Yield each microbatch's gradient of its share, itself to be differentiated."""
        for rows in microbatches:
            # The fused attention kernels have no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                [share] = self._shares(losses, [rows])
                first = torch.autograd.grad(share, self.trained, create_graph=True, materialize_grads=True)
            yield _flat(first)

    def _derivative(self, number: Tensor, retain_graph: bool = False) -> Tensor:
        """Return the derivative of a number by the trained parameters, (N,), or a single 0 if it is constant."""
        if not number.requires_grad:
            return torch.zeros((), device=number.device)
        return _flat(torch.autograd.grad(number, self.trained, retain_graph=retain_graph, materialize_grads=True))

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

    def _shares(self, losses: Losses, microbatches: list[Tensor] | None = None) -> Iterator[Tensor]:
        """Yield each microbatch's share of the aggregate of ``losses``; of all of them where none are named."""
        trainer = self.trainer
        aggregation = trainer.optimizer.settings.loss_aggregation

        def share(part: Any) -> Tensor:
            return aggregate_losses(losses(trainer.policy, part), loss_mask(part), aggregation, *self.counts)

        return self._each(share, self.microbatches if microbatches is None else microbatches)

    def _each(self, share: Callable[[Any], Tensor], microbatches: list[Tensor]) -> Iterator[Tensor]:
        """Yield ``share`` of each microbatch, without exchanging gradients between ranks."""
        for rows in microbatches:
            with gradient_sync(self.trainer.accelerator, getattr(self.trainer.policy, "module", None), last=False):
                yield share(self.batch.select(rows))
            self.trainer.policy.forget()

    @torch.no_grad()
    def _sum(self, shares: Iterator[Tensor]) -> float:
        """Return the sum over microbatches and ranks."""
        total = torch.zeros((), device=self.batch.action_mask.device)
        for share in shares:
            total += share
        return float(self.trainer.accelerator.reduce(total, reduction="sum"))


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
