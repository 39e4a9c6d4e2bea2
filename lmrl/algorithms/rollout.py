"""Frozen dataclasses for rollout data, one per phase from sampling to the loss.

``Samples`` (sampled) -> ``Scored`` (text and scores) -> ``Rollout`` (reference, values, per-token rewards) -> ``Batch``
(advantages, cut into minibatches). In every (B, T) field column t describes the same sampled token, and everything
outside ``action_mask`` is 0. Masks come from lengths, never from a search for a token id.

What an optimizer sees (``Rollout``, ``Batch``) is free of text: ``inputs`` is opaque to it and is read by the policy
alone, so the same optimizer trains a language model or a CartPole controller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from lmrl.algorithms.sequences import Sequences, at_last_action, select_record
from lmrl.errors import LmrlError, RenamedError, UnknownColumn, unknown


class Inputs(Protocol):
    """Inputs from which a policy recomputes the log-probabilities of a batch's actions; opaque to optimizers."""

    @property
    def row_lengths(self) -> Tensor:
        """Positions that the policy computes for each row, (B,): what a microbatch is measured by."""
        ...

    def select(self, rows: Tensor) -> Self:
        """Return the rows with these indices."""
        ...


RENAMED = (
    "behavior_logprobs is sampler_logprobs (what the engine recorded) or proximal_logprobs (the old policy of ratios "
    "and clipping) now; docs/migration.md lists what changed in version 0.2"
)


class _Renamed:
    """Gives columns of version 0.1 an error that says what they are now."""

    def __new__(cls, *_: Any, **columns: Any) -> Self:
        if "behavior_logprobs" in columns:
            raise RenamedError(RENAMED)
        return super().__new__(cls)

    def __getattr__(self, name: str) -> Any:
        if name == "behavior_logprobs":
            raise RenamedError(RENAMED)
        return object.__getattribute__(self, name)  # raises again what the first look-up raised


@dataclass(frozen=True)
class Samples(_Renamed):
    """Sampled rows: tokens, their log-probabilities, and how each row ended."""

    inputs: Sequences
    """Token sequences of the rows."""
    action_mask: Tensor
    """True on the actions, (B, T) bool."""
    sampler_logprobs: Tensor
    """Log-probability of each token under the distribution that it was drawn from, after temperature and forbidden
    tokens, (B, T) float32."""
    terminated: Tensor
    """True where the episode reached an end state, (B,) bool."""
    truncated: Tensor
    """True where the episode was cut off at a limit, (B,) bool."""
    finish_reasons: Tensor
    """Codes of ``lmrl.engines.FinishReason``, (B,) int8."""
    group: Tensor
    """Number of each row's prompt, (B,) int64: rows with one number share a prompt."""
    policy_version: Tensor
    """Version of the weights that drew each token, (B, T) int64."""

    def select(self, rows: Tensor) -> Self:
        """Return the rows with these indices."""
        return select_record(self, rows)

    def narrow(self) -> Samples:
        """Return the same without columns in which no row has an action."""
        width = self.inputs.width
        names = ("action_mask", "sampler_logprobs", "policy_version")
        return replace(self, **{name: getattr(self, name)[:, :width] for name in names})


@dataclass(frozen=True)
class Scored:
    """Samples with their text and scores.

    ``scores`` (B,): the reward of the whole response. ``scored`` (B,) bool is False where there is none, because the
    response was truncated or the reward returned None; the score is 0 there and belongs in no average. It defaults to
    the rows that were not truncated. ``score_parts`` are the named terms of the score, each (B,): NaN where a term does
    not apply, and in rows that the reward is not called with. ``further_scores`` (B, K), where there are further
    requests, are the scores of the responses to those of each row's group, NaN where one has none. ``further`` are
    these responses, K samples of B rows: those of one group are alike. ``rewards`` (B, T) say which action the score is
    for: the last one by default.
    """

    samples: Samples
    prompts: list[str]
    responses: list[str]
    scores: Tensor
    score_parts: Mapping[str, Tensor]
    scored: Tensor = None  # type: ignore[assignment]  # set below
    further_scores: Tensor | None = None
    further: tuple[Samples, ...] = ()
    rewards: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.scored is None:
            object.__setattr__(self, "scored", ~self.samples.truncated)
        if self.rewards is None:
            object.__setattr__(self, "rewards", at_last_action(self.scores, self.samples.action_mask))

    def with_parts(self, names: Iterable[str]) -> Scored:
        """Return the same with these parts too: NaN where there is none, because all rows were truncated, say."""
        unknown_part = torch.full_like(self.scores, torch.nan)
        parts = {name: self.score_parts.get(name, unknown_part) for name in sorted({*names, *self.score_parts})}
        return replace(self, score_parts=parts)

    def narrow(self) -> Scored:
        """Return the same without columns in which no row has an action."""
        samples = self.samples.narrow()
        return replace(self, samples=samples, rewards=self.rewards[:, : samples.action_mask.shape[1]])

    def select(self, rows: Tensor) -> Self:
        """Return the rows with these indices."""
        return select_record(self, rows)


class UndeclaredNeed(LmrlError, AttributeError):
    """An optimizer read a field that its spec does not declare a need for."""


def _no_requests(name: str) -> UndeclaredNeed:
    return UndeclaredNeed(
        f"rollout.{name} was read, but the optimizer makes no further requests; write further_requests(group)"
    )


@dataclass(frozen=True)
class Rollout(_Renamed):
    """Rollout batch that an optimizer's ``advantages`` receives: B episodes of at most T actions.

    Column t of every (B, T) field describes the t-th action of a row; fields are 0 outside ``action_mask``. A token has
    three log-probabilities: ``sampler_logprobs``, ``proximal_logprobs``, and that of the current policy, which
    ``policy.evaluate`` returns. Ratios, clipping and the KL use the second and the third.

    ``values``, ``bootstrap_values`` and ``reference_logprobs`` exist if the optimizer's spec declares the need,
    ``further_scores`` and ``further_responses`` if the optimizer makes further requests; reading one otherwise raises
    ``UndeclaredNeed``.
    """

    inputs: Any
    """Inputs of the policy; opaque to optimizers."""
    action_mask: Tensor
    """True on the actions that the policy took, (B, T) bool."""
    sampler_logprobs: Tensor
    """Log-probability of each action under the distribution that it was drawn from, (B, T)."""
    rewards: Tensor
    """Reward of each action, (B, T): the score on the last action, or the rewards per token or turn that it is the sum
    of, minus the KL penalty where it is placed in the reward."""
    scores: Tensor
    """Return of each episode without the KL penalty, (B,); 0 where ``scored`` is False."""
    terminated: Tensor
    """True where the episode reached an end state, (B,) bool."""
    truncated: Tensor
    """True where the episode was cut off at a limit, (B,) bool."""
    group: Tensor
    """Number of each row's prompt, (B,) int64."""
    declared: Mapping[str, Tensor] = field(default_factory=dict)
    """Columns that the optimizer's spec declares a need for, by name."""
    scored: Tensor = None  # type: ignore[assignment]  # set below
    """True where the episode has a score, (B,) bool; leave other rows out of every mean, pair and comparison. The
    default is ``~truncated``, because a truncated row's score is withheld; pass it where truncated episodes have their
    rewards."""
    loss_mask: Tensor = None  # type: ignore[assignment]
    """True on the actions that enter the loss and its counts, (B, T) bool: a subset of ``action_mask``. The default is
    the actions of rows with a known return: scored rows and, if there are ``values``, truncated rows, whose return is
    bootstrapped."""
    proximal_logprobs: Tensor = None  # type: ignore[assignment]
    """Log-probability of each action under the policy at the start of the update, in the update's precision, (B, T).
    The default is ``sampler_logprobs``: they are equal if the engine is exact and every token has the current
    version."""
    policy_version: Tensor = None  # type: ignore[assignment]
    """Version of the weights that drew each token, (B, T) int64; 0 by default."""
    turn: Tensor = None  # type: ignore[assignment]
    """Number of each action's turn in its trajectory, (B, T) int64; 0 by default."""
    further: tuple[Any, ...] = ()
    """Responses to the further requests, as ``further_responses`` returns them; empty without further requests."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Named terms of the score before their weights, each (B,); NaN where one does not apply or the row is truncated.
    Of a single reward these are the parts that it returns, of a weighted sum each reward's own score too."""

    def __post_init__(self) -> None:
        if self.proximal_logprobs is None:
            object.__setattr__(self, "proximal_logprobs", self.sampler_logprobs)
        for name in ("policy_version", "turn"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, torch.zeros_like(self.action_mask, dtype=torch.long))
        scored = ~self.truncated if self.scored is None else self.scored
        mask = self.loss_mask
        if mask is None:
            mask = (scored | self.truncated if "values" in self.declared else scored)[:, None]
        object.__setattr__(self, "scored", scored)
        object.__setattr__(self, "loss_mask", self.action_mask & mask)

    @property
    def values(self) -> Tensor:
        """Value estimates before each action, (B, T)."""
        return self._declared("values")

    @property
    def bootstrap_values(self) -> Tensor:
        """Value estimates of the state after each row's last action, (B,)."""
        return self._declared("bootstrap_values")

    @property
    def reference_logprobs(self) -> Tensor:
        """Log-probabilities of the sampled actions under the reference model, (B, T)."""
        return self._declared("reference_logprobs")

    @property
    def further_scores(self) -> Tensor:
        """The scores of the responses to the further requests of each row's group, (B, K)."""
        return self._declared("further_scores")

    @property
    def further_responses(self) -> tuple[Any, ...]:
        """The responses to the further requests of each row's group, K ``Responses`` of B rows."""
        if not self.further:
            raise _no_requests("further_responses")
        return self.further

    def _declared(self, name: str) -> Tensor:
        if name == "further_scores" and name not in self.declared:
            raise _no_requests(name)
        if name not in self.declared:
            need = "reference" if name == "reference_logprobs" else "values"
            raise UndeclaredNeed(
                f"rollout.{name} was read, but the optimizer's spec does not declare it; "
                f"register it with Needs({need}=True)"
            )
        return self.declared[name]

    def __len__(self) -> int:
        return int(self.action_mask.shape[0])

    def select(self, rows: Tensor) -> Self:
        """Return the rows with these indices."""
        found = select_record(self, rows)
        if self.proximal_logprobs is self.sampler_logprobs:  # one tensor stays one: there is nothing to correct
            object.__setattr__(found, "proximal_logprobs", found.sampler_logprobs)
        return found


@dataclass(frozen=True)
class Advantages:
    """Result of an optimizer's ``advantages``."""

    advantages: Tensor
    """Weight of each action, (B, T)."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further columns by name, (B, T) or (B,), such as value targets; ``loss`` reads them as ``batch["name"]``."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Columns to log by name, (B, T) or (B,); the trainer logs their means."""


@dataclass(frozen=True)
class Batch(_Renamed):
    """Rows of a rollout with their advantages, as ``loss`` receives them."""

    rollout: Rollout
    """The rows of the rollout: ``batch.rollout.scores``, for example."""
    advantages: Tensor
    """Weight of each action, (B, T)."""
    extra: Mapping[str, Tensor]
    """Further columns of ``Advantages``, which ``batch["name"]`` reads."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Means of ``PolicyOptimizer.statistics`` over the whole minibatch."""

    @classmethod
    def from_rollout(cls, rollout: Rollout, advantages: Advantages) -> Batch:
        """Join a rollout and its advantages; both are detached from any graph."""
        return cls(
            rollout,
            advantages.advantages.detach(),
            {name: column.detach() for name, column in advantages.extra.items()},
        )

    @property
    def inputs(self) -> Any:
        """Inputs of the policy; opaque to optimizers."""
        return self.rollout.inputs

    @property
    def action_mask(self) -> Tensor:
        """True on the actions that the policy took, (B, T)."""
        return self.rollout.action_mask

    @property
    def loss_mask(self) -> Tensor:
        """True on the actions that enter the loss and its counts, (B, T): a subset of ``action_mask``."""
        return self.rollout.loss_mask

    @property
    def sampler_logprobs(self) -> Tensor:
        """Log-probabilities under the distribution that was sampled from, (B, T)."""
        return self.rollout.sampler_logprobs

    @property
    def proximal_logprobs(self) -> Tensor:
        """Log-probabilities under the policy at the start of the update, (B, T): the old policy of every ratio."""
        return self.rollout.proximal_logprobs

    @property
    def group(self) -> Tensor:
        """Number of each row's prompt, (B,)."""
        return self.rollout.group

    @property
    def row_lengths(self) -> Tensor:
        """Positions that the policy computes for each row, (B,)."""
        lengths: Tensor = self.rollout.inputs.row_lengths
        return lengths

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.extra:
            advice = "Columns of a batch are those of the optimizer's advantages()."
            raise UnknownColumn(unknown("column", name, self.extra, advice))
        return self.extra[name]

    def __len__(self) -> int:
        return len(self.rollout)

    def select(self, rows: Tensor) -> Batch:
        """Return the rows with these indices."""
        return select_record(self, rows)


def loss_mask(experience: Any) -> Tensor:
    """Return the mask of what enters the loss and its counts, (B, T): ``loss_mask``, or ``action_mask`` without one."""
    mask: Tensor = experience.loss_mask if hasattr(experience, "loss_mask") else experience.action_mask
    return mask
