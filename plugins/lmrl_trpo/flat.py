"""A minibatch as a function of one flat vector of parameters: its value, Hessian products, and conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmrl.algorithms import Minibatch, Policy

Losses = Callable[[Policy, Any], Tensor]
"""Return one loss per token or row of a microbatch."""


class FlatMinibatch:
    """The minibatch over all ranks; vectors (N,) are flat over the policy's trained parameters."""

    def __init__(self, minibatch: Minibatch) -> None:
        self.minibatch = minibatch
        self.trained = minibatch.parameters

    @property
    def gradient(self) -> Tensor:
        """Gradient of the aggregated loss, (N,), clipped as the run's settings say."""
        return _flat(parameter.grad for parameter in self.trained)

    def loss(self) -> float:
        """Return the aggregated loss, the KL in it included, at the current parameters.

        The value function's part of it does not change while the policy moves, because its trunk is its own.
        """
        return self._sum(self.minibatch.loss)

    def mean(self, losses: Losses) -> float:
        """Return the aggregate of ``losses(policy, part)`` at the current parameters."""
        return self._sum(lambda part: self._share(losses, part))

    def hessian(self, losses: Losses) -> Callable[[Tensor], Tensor]:
        """Return the product of that aggregate's Hessian and a vector (Pearlmutter 1994): two backward passes.

        The microbatches whose graphs fit into memory together go through the model and the first pass once for all
        products; the others go through both for each product. The Hessian is that at the current parameters.
        """
        kept = self._kept_gradients(losses)

        def product(vector: Tensor) -> Tensor:
            total = torch.zeros_like(vector)
            for first in kept:
                total += self._derivative(first @ vector, retain_graph=True)
            for first in self._gradients(losses, start=len(kept)):
                total += self._derivative(first @ vector)
            return self.minibatch.reduce(total)

        return product

    def parameters(self) -> Tensor:
        """Return a copy of the policy's parameters, (N,)."""
        return _flat(parameter.detach() for parameter in self.trained)

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        """Set the policy's parameters to ``vector``; assigning the copy restores them bit for bit."""
        start = 0
        for parameter in self.trained:
            end = start + parameter.numel()
            parameter.copy_(vector[start:end].view_as(parameter))
            start = end

    @contextmanager
    def at(self, vector: Tensor) -> Iterator[None]:
        """Give the policy these parameters within a ``with``, to evaluate it without gradients."""
        now = self.parameters()
        self.minibatch.policy.forget()
        self.assign(vector)
        try:
            yield
        finally:
            self.assign(now)
            self.minibatch.policy.forget()

    def _kept_gradients(self, losses: Losses) -> list[Tensor]:
        """Return the gradients of the first microbatches, as many as may be kept with their graphs."""
        alone = len(self.minibatch) == 1  # its graph is needed in any case
        room = self.minibatch.graph_bytes()
        gradients, kept = self._gradients(losses), []
        for _ in range(len(self.minibatch)):
            with self.minibatch.count_bytes() as count:
                first = next(gradients)
            room -= count()
            if room < 0 and not alone:
                break
            kept.append(first)
        return kept

    def _gradients(self, losses: Losses, start: int = 0) -> Iterator[Tensor]:
        """Yield each microbatch's gradient of its share, itself to be differentiated."""
        for part in self.minibatch.parts(start):
            # The fused attention kernels have no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                share = self._share(losses, part)
                self.minibatch.policy.forget()  # an evaluation holds more than its graph
                first = torch.autograd.grad(share, self.trained, create_graph=True, materialize_grads=True)
            yield _flat(first)

    def _derivative(self, number: Tensor, retain_graph: bool = False) -> Tensor:
        """Return the derivative of a number by the trained parameters, (N,), or a single 0 if it is constant."""
        if not number.requires_grad:
            return torch.zeros((), device=number.device)
        return _flat(torch.autograd.grad(number, self.trained, retain_graph=retain_graph, materialize_grads=True))

    def _share(self, losses: Losses, part: Any) -> Tensor:
        return self.minibatch.aggregate(losses(self.minibatch.policy, part), part)

    @torch.no_grad()
    def _sum(self, share: Callable[[Any], Tensor]) -> float:
        """Return the sum over microbatches and ranks."""
        total = torch.zeros((), device=self.trained[0].device)
        for part in self.minibatch.parts():
            total += share(part)
        return float(self.minibatch.reduce(total))


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, steps: int) -> Tensor:
    """Return x of A x = target, (N,), for a symmetric positive A that is known by its product (Hestenes, Stiefel 1952).

    Ends before ``steps`` iterations where the residual is gone or a direction has no positive curvature.
    """
    x, residual = torch.zeros_like(target), target.clone()
    direction, size = residual.clone(), residual @ residual
    for _ in range(steps):
        curved = product(direction)
        curvature = direction @ curved
        if not float(curvature) > 0:  # no further than the matrix is positive
            break
        x, residual = x + size / curvature * direction, residual - size / curvature * curved
        size, old = residual @ residual, size
        if float(size) < 1e-10 * float(target @ target):
            break
        direction = residual + size / old * direction
    return x


def _flat(tensors: Iterable[Any]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
