"""The interface of policies that an ``Updater`` trains, and a base class with the simplest form of each method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from lmrl.algorithms.optimizer import Evaluation, Policy
from lmrl.algorithms.parameters import TrainedParameters
from lmrl.algorithms.sequences import split_by_length


class TrainablePolicy(Policy, Protocol):
    """Policy that an ``Updater`` trains: ``evaluate``, and how a minibatch goes through it."""

    def microbatches(self, batch: Any, token_budget: int) -> list[Tensor]:
        """Return the rows of each forward and backward pass over ``batch``; together they are all rows."""
        ...

    def forget(self) -> None:
        """Drop kept evaluations and their graphs, before the parameters change."""
        ...

    def no_sync(self) -> AbstractContextManager[Any]:
        """Return a context in which ranks exchange no gradients: that of all backward passes but a step's last."""
        ...

    def trainable(self) -> Sequence[TrainedParameters]:
        """Return the parameters that learn."""
        ...


class LocalPolicy:
    """Base class of policies in one process: microbatches of rows of like length, and nothing to exchange or drop."""

    def evaluate(self, batch: Any) -> Evaluation:
        """Return the current policy on a batch's actions; see ``lmrl.algorithms.Policy``."""
        raise NotImplementedError(f"{type(self).__name__} does not define evaluate(batch)")

    def microbatches(self, batch: Any, token_budget: int) -> list[Tensor]:
        """Return the rows of each microbatch, cut by ``batch.row_lengths``."""
        return split_by_length(batch.row_lengths, token_budget)

    def forget(self) -> None:
        """Drop nothing: evaluations are not kept."""

    def no_sync(self) -> AbstractContextManager[Any]:
        """Do nothing: there is one process."""
        return nullcontext()

    def trainable(self) -> Sequence[TrainedParameters]:
        """Return the parameters that learn."""
        raise NotImplementedError(f"{type(self).__name__} does not define trainable()")
