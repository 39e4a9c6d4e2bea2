"""What a policy optimizer is: credit assignment and a loss, nothing else.

The trainer samples, scores, shapes, cuts minibatches, aggregates losses with the *global* token or row count, and
steps. An optimizer therefore never averages: it returns one loss per token or per row, and no accumulation, packing or
number of ranks can change its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from lmrl.rollout import Advantages, Batch, Rollout

LossAggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]


@dataclass
class OptimizerSettings:
    """Settings that every optimizer has; a plugin's own settings inherit from this class."""

    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Gradient steps per pass: each rollout is cut into this many minibatches."""
    loss_aggregation: LossAggregation = "token_mean"
    """token_mean: mean over all response tokens; sequence_mean: mean over rows of each row's token mean;
    sequence_sum: mean over rows of each row's token sum, the gradient of the expected return itself."""


class Evaluation(Protocol):
    """The current policy on a batch: gradients flow through every field.

    ``logprobs`` (B, T) of the sampled actions, ``entropy`` (B, T) of the full distributions, ``values`` (B, T) if the
    optimizer declared ``Needs(values=True)``. All are 0 outside the action mask. ``entropy`` is computed when read.
    """

    @property
    def logprobs(self) -> Tensor:
        """Log-probabilities of the sampled actions, (B, T)."""
        ...

    @property
    def entropy(self) -> Tensor:
        """Entropies of the distributions that the actions were drawn from, (B, T)."""
        ...

    @property
    def values(self) -> Tensor:
        """Value estimates before each action, (B, T)."""
        ...


class Policy(Protocol):
    """What ``loss`` receives to recompute the batch's actions under the current parameters."""

    def evaluate(self, batch: Batch) -> Evaluation:
        """Return the current policy's log-probabilities, entropies and values of the batch's actions."""
        ...


@dataclass(frozen=True)
class Loss:
    """What ``loss`` returns: one loss per token (B, T) or per row (B,), not averaged.

    ``metrics`` are columns of the same two shapes; the trainer logs their means over all tokens or rows.
    """

    losses: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class PolicyOptimizer:
    """Base class of policy optimizers: write ``advantages`` and ``loss``, and register an ``OptimizerSpec``.

    ``Settings`` is the dataclass of the optimizer's own configuration section; its field docstrings are the help.
    """

    Settings: ClassVar[type[OptimizerSettings]] = OptimizerSettings

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Assign credit to every action of a rollout (once per rollout, without gradients)."""
        raise TypeError(f"{type(self).__name__} does not define advantages(rollout)")

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return the loss of every token or row of a batch (once per microbatch, with gradients)."""
        raise TypeError(f"{type(self).__name__} does not define loss(policy, batch)")

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Say whether to leave out this minibatch's step and the rest of this rollout's epochs (a target KL, say).

        Called before each step with the minibatch's averaged metrics; the default never stops.
        """
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a resume (a running baseline, say): JSON-like values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}")
