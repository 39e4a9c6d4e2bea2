"""Minibatch for an optimizer with a step of its own: gradients, microbatches, and sums over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmrl.algorithms.ops import aggregate_losses
from lmrl.algorithms.rollout import loss_mask
from lmrl.training.memory import graph_allowance, saved_bytes
from lmrl.training.update_settings import TrainSettings


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
        self.policy = trainer.policy
        self.batch = batch
        self.microbatches = microbatches
        self.counts = counts
        self.loss = share_of_loss
        self.epoch = epoch
        groups = trainer.torch_optimizer.param_groups
        self.parameters: list[nn.Parameter] = [
            parameter
            for group in groups
            if group.get("role", "policy") == "policy"
            for parameter in group["params"]
            if parameter.grad is not None
        ]

    def __len__(self) -> int:
        return len(self.microbatches)

    def parts(self, start: int = 0) -> Iterator[Any]:
        """Yield each microbatch from number ``start`` on, without exchanging gradients between ranks."""
        for rows in self.microbatches[start:]:
            with self.policy.no_sync():
                try:
                    yield self.batch.select(rows)
                finally:
                    self.policy.forget()

    def aggregate(self, losses: Tensor, part: Any) -> Tensor:
        """Return this microbatch's share of the aggregate of ``losses`` over the minibatch of all ranks."""
        aggregation = self.trainer.optimizer.settings.loss_aggregation
        return aggregate_losses(losses, loss_mask(part), aggregation, *self.counts)

    def reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks."""
        reduced: Tensor = self.trainer.accelerator.reduce(tensor, reduction="sum")
        return reduced

    def graph_bytes(self) -> float:
        """Return the bytes of graphs that may be kept side by side."""
        return graph_allowance(self.trainer.settings, self.batch.action_mask.device)

    def count_bytes(self) -> AbstractContextManager[Callable[[], int]]:
        """Count the bytes that autograd keeps of what is computed within, parameters left out."""
        return saved_bytes(self.parameters)

    def drop_gradient(self) -> None:
        """Leave the policy's parameters to what ``step`` did: the optimizer of torch skips what has no gradient."""
        for parameter in self.parameters:
            parameter.grad = None
