"""Contract of policy optimizers: credit assignment and a loss, nothing else.

The trainer samples, scores, shapes, cuts minibatches, aggregates losses with the *global* token or row count, and
steps. An optimizer therefore never averages: it returns one loss per token or per row, and no accumulation, packing or
number of ranks can change its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from lmrl.algorithms.beside import Mixture, NamedModel
from lmrl.algorithms.experience import PairBatch
from lmrl.algorithms.parameters import TrainedParameters
from lmrl.algorithms.rollout import Advantages, Rollout
from lmrl.algorithms.sequences import Sequences

if TYPE_CHECKING:
    from lmrl.engines import Request
    from lmrl.engines.protocol import SamplingSpec


LossAggregation = Literal["token_mean", "sequence_mean", "sequence_sum"]
"""Names of the means that ``lmrl.ops.aggregate_losses`` takes of losses per token."""


@dataclass
class OptimizerSettings:
    """Settings that every optimizer has; a plugin's own settings inherit from this class."""

    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Gradient steps per pass: each rollout is cut into this many minibatches."""
    loss_aggregation: LossAggregation = "token_mean"
    """Mean of the losses. token_mean: over all response tokens; sequence_mean: over rows, of each row's token mean;
    sequence_sum: over rows, of each row's token sum, the gradient of the expected return itself."""


class Evaluation(Protocol):
    """The current policy on a batch: gradients flow through every field.

    ``logprobs`` (B, T) of the sampled actions, ``entropy`` (B, T) of the full distributions, ``values`` (B, T) if the
    optimizer declared ``Needs(values=True)``. All are 0 outside the action mask. ``entropy`` is computed when read.
    ``log_distributions`` (N, V) are the full distributions, a row for each true entry of the mask in row-major order.
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

    @property
    def log_distributions(self) -> Tensor:
        """Log-probabilities of every action in each state, (N, V)."""
        ...

    def head(self, name: str) -> Tensor:
        """Return the output of one of the optimizer's ``heads`` for each action taken, (..., B, T)."""
        ...


class OtherModel(Protocol):
    """Model beside the policy, as ``policy.other(name)`` gives it."""

    def evaluate(self, batch: Any) -> Evaluation:
        """Return the model's log-probabilities and entropies of the batch's actions, under the policy's sampling."""
        ...


class Policy(Protocol):
    """Policy that ``loss`` receives to recompute the batch's actions under the current parameters."""

    def evaluate(self, batch: Any) -> Evaluation:
        """Return the current policy's log-probabilities, entropies and values of the batch's actions.

        ``batch`` is a ``Batch``, or the ``Responses`` of a pair, of labelled answers or of trajectories.
        """
        ...

    def other(self, name: str) -> OtherModel:
        """Return one of the optimizer's ``models``, or ``"reference"``: evaluated without gradients and values."""
        ...

    def compare(self, batch: Any, name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return ``function`` of the policy's and another model's distributions in every state, (B, T), 0 elsewhere.

        ``function`` is given the log-probabilities of all tokens by the policy and by the model ``name``, each (n, V),
        and returns (n,). It is called with some states at a time, and again in the backward pass where (N, V) is
        large, so that no tensor of that size is kept.
        """
        ...

    def forget(self) -> None:
        """Drop evaluations and their graphs, before the parameters change."""
        ...


class Minibatch(Protocol):
    """The minibatch over all ranks that ``step`` receives, in microbatches that fit into memory."""

    @property
    def epoch(self) -> int:
        """Number of the pass over the rollout, from 0."""
        ...

    @property
    def policy(self) -> Policy:
        """The policy, as ``loss`` receives it."""
        ...

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Trained parameters of the policy, without those of a value function.

        Their ``grad`` is the gradient of the aggregated loss, clipped at ``train.max_gradient_norm``.
        """
        ...

    def __len__(self) -> int:
        """Return the number of microbatches on this rank."""
        ...

    def parts(self, start: int = 0) -> Iterator[Any]:
        """Yield each microbatch from number ``start`` on; the policy forgets its evaluation before the next."""
        ...

    def aggregate(self, losses: Tensor, part: Any) -> Tensor:
        """Return a microbatch's share of the aggregate of ``losses``, per token or row; ranks' shares add up to it."""
        ...

    def loss(self, part: Any) -> Tensor:
        """Return a microbatch's share of the aggregated loss, with the KL where ``kl.placement`` puts it there."""
        ...

    def reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks."""
        ...

    def graph_bytes(self) -> float:
        """Return the bytes of graphs that may be kept side by side: ``train.microbatch_memory`` or a share of memory.

        ``count_bytes`` measures a graph.
        """
        ...

    def count_bytes(self) -> AbstractContextManager[Callable[[], int]]:
        """Return a context whose function returns the bytes of the graphs made inside it, without parameters."""
        ...


class LogitsProcessor(Protocol):
    """The tokens that a policy may draw in each state, fixed between updates: one form for a step, one for whole rows.

    Rows are sampled and evaluated within the same support, renormalized.
    """

    def restrict(self, model: Any) -> Any:
        """Return ``model`` as an engine drives it, with or without a cache: logits are -inf outside the support.

        Models that run beside it are its ``parts``; each then has its own of the cache's ``caches``
        (``lmrl.engines.JointCache``).
        """
        ...

    def support(self, inputs: Sequences) -> Tensor:
        """Return the tokens that may be drawn before each sampled token, (N, V) bool, teacher-forced."""
        ...

    def after_update(self, update: int, model: Any) -> None:
        """Follow the policy's language model, if at all, after update 1, 2, ..."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the tensors that a resumed run needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that ``state_dict`` returned."""
        ...


@dataclass(frozen=True)
class Loss:
    """Result of ``loss``: losses that are not averaged."""

    losses: Tensor
    """One loss per token, (B, T), or per row, (B,); of pairs, (P,)."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Columns to log by name, of the same two shapes; the trainer logs their means over all tokens or rows."""


class PolicyOptimizer:
    """Base class of policy optimizers: write ``advantages`` and ``loss``, and register an ``OptimizerSpec``.

    The other methods are optional. An optimizer of preference pairs or labelled responses (``Needs.experience``) writes
    ``loss`` alone.
    """

    Settings: ClassVar[type[OptimizerSettings]] = OptimizerSettings
    """Dataclass of the optimizer's settings; its field docstrings are the help."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def advantages(self, rollout: Rollout) -> Advantages:
        """Return the weight of every action of a rollout batch; called once per rollout batch, without gradients."""
        raise TypeError(f"{type(self).__name__} does not define advantages(rollout)")

    def loss(self, policy: Policy, batch: Any) -> Loss:
        """Return the loss of every token or row of a batch; called once per microbatch, with gradients.

        ``batch`` is a ``Batch``, ``PairBatch``, ``LabelledBatch`` or ``TrajectoryBatch``; ``Needs.experience`` declares
        it.
        """
        raise TypeError(f"{type(self).__name__} does not define loss(policy, batch)")

    def pairs(self, rollout: Rollout) -> PairBatch:
        """Return preference pairs of a rollout batch; an optimizer that writes this learns from pairs, without
        advantages.

        Called once per rollout batch and rank. Every group must give the same number of pairs on every rank; mark
        uninformative pairs as not kept (``PairBatch.from_rollout``).
        """
        raise TypeError(f"{type(self).__name__} does not define pairs(rollout)")

    def further_requests(self, group: Sequence[Request]) -> Sequence[Request]:
        """Return further requests to the prompt of one group, for example at temperature 0 or to another model.

        Return the same number K for every group. The trainer sets their seeds. ``replace(group[0], model="reference")``
        asks the reference model, and other names ask ``models``. The responses are scored, ``rollout.further_scores``
        (B, K), but they are no rows of the rollout: they have no advantages and no importance weights.
        ``rollout.further_responses`` holds them, to make pairs of.
        """
        return []

    def models(self) -> Mapping[str, NamedModel | Mixture]:
        """Return the models beside the policy by name: teachers, moving averages, mixtures to sample from."""
        return {}

    def informative(self, scores: Tensor, group: Tensor) -> Tensor:
        """Return a mask (B,) of rows worth learning from; groups with other rows are sampled again (DAPO, eq. 11).

        ``train.resamples`` limits the repetitions; groups that are uninformative after the last one are kept, so that
        the batch keeps its size. Called once per repetition and rank, with the scored rows. If a setting switches it
        on, register a ``build`` that returns a subclass with this method.
        """
        return torch.ones_like(group, dtype=torch.bool)

    def statistics(self, policy: Policy, batch: Any) -> Mapping[str, Tensor]:
        """Return columns, (B, T) or (B,), whose means over the whole minibatch ``loss`` reads as ``batch.means``.

        Called without gradients on every microbatch before the first is differentiated.
        """
        return {}

    def step(self, minibatch: Minibatch) -> Mapping[str, float]:
        """Change ``minibatch.parameters`` in place of AdamW's step, and return numbers to log.

        AdamW still steps a value function.
        """
        raise TypeError(f"{type(self).__name__} does not define step(minibatch)")

    def heads(self, width: int, actions: int) -> Mapping[str, nn.Module]:
        """Return modules by name that read the policy's hidden states; called once, when the policy is made.

        A module is called with the last hidden states (N, ``width``), in float32, and the ids of the actions taken
        (N,), and returns (..., N); ``loss`` reads that as ``policy.evaluate(batch).head(name)``. Parameters that
        require gradients are trained at ``train.value_learning_rate``, or as ``parameter_groups`` declares. All are
        saved with each checkpoint, in ``<name>.safetensors``, and restored.
        """
        return {}

    def parameter_groups(self, heads: Mapping[str, nn.Module]) -> Sequence[TrainedParameters]:
        """Return groups of parameters of ``heads`` with a learning rate, warm-up or schedule of their own."""
        return ()

    def sampled_head(self, lm_head: nn.Linear) -> nn.Linear:
        """Return the LM head that is sampled and saved in place of the trained one; an optimizer with ``heads``."""
        return lm_head

    def processor(
        self, model: Any, spec: SamplingSpec, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> LogitsProcessor | None:
        """Return a processor that restricts the tokens that are drawn and evaluated, or None.

        ``model`` is the language model of the initial policy, ``spec`` the sampling distribution, ``autocast`` makes
        the context that the model is trained in. Engines without ``Capabilities(logits_processors=True)`` raise an
        error.
        """
        return None

    def after_step(self, policy: Policy) -> None:
        """Called after every optimizer step, for example to update target copies of ``heads``."""
        return None

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Return True to skip this minibatch's step and the remaining epochs, for example at a target KL.

        Called before each step with the minibatch's averaged metrics; the default is False.
        """
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state, such as a running baseline: JSON-like values and tensors."""
        return {}

    def defines(self, method: str) -> bool:
        """Return True if the optimizer writes this optional method itself."""
        return getattr(type(self), method) is not getattr(PolicyOptimizer, method)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}")
