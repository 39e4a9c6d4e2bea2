"""The interface of policies that an ``Updater`` trains, and a base class with the simplest form of each method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from lmrl.algorithms.beside import no_such_model
from lmrl.algorithms.ops import scatter_rows
from lmrl.algorithms.optimizer import Evaluation, OtherModel, Policy
from lmrl.algorithms.parameters import TrainedParameters
from lmrl.algorithms.sequences import split_by_length
from lmrl.errors import SettingsError


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


class LocalPolicy(ABC):
    """Base class of policies in one process: microbatches of rows of like length, and nothing to exchange or drop."""

    @abstractmethod
    def evaluate(self, batch: Any) -> Evaluation:
        """Return the current policy on a batch's actions; see ``lmrl.algorithms.Policy``."""

    def other(self, name: str) -> OtherModel:
        """Return a model beside the policy; raises ``PluginError`` unless a policy defines it."""
        raise no_such_model(name, ())

    def compare(self, batch: Any, name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return ``function`` of the policy's and another model's distributions in every state, (B, T), 0 elsewhere."""
        own, other = self.evaluate(batch).log_distributions, self.other(name).evaluate(batch).log_distributions
        return scatter_rows(function(own, other), batch.action_mask)

    def microbatches(self, batch: Any, token_budget: int) -> list[Tensor]:
        """Return the rows of each microbatch, cut by ``batch.row_lengths``."""
        return split_by_length(batch.row_lengths, token_budget)

    def forget(self) -> None:
        """Drop nothing: evaluations are not kept."""
        return None

    def no_sync(self) -> AbstractContextManager[Any]:
        """Do nothing: there is one process."""
        return nullcontext()

    def trainable(self) -> Sequence[TrainedParameters]:
        """Return the parameters that learn; a policy whose updater is given a torch optimizer needs none of its own.

        Raises ``SettingsError`` unless a policy defines it.
        """
        raise SettingsError(
            f"{type(self).__name__} does not say which parameters learn; define trainable(), or give the Updater a "
            "torch_optimizer"
        )
