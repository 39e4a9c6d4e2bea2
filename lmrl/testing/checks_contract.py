"""Checks of the contract itself: types, shapes, needs, what may be changed, and what survives a resume.

A check takes a ``Trial`` and returns one sentence (what was found, what was expected, what to do), or "".
"""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.kl import shaping_term
from lmrl.algorithms.optimizer import OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.rollout import Rollout, UndeclaredNeed
from lmrl.testing.columns import clone, first_change
from lmrl.testing.shapes import kind_of, wrong_advantages, wrong_columns, wrong_informative, wrong_loss, wrong_state
from lmrl.testing.toy_experience import EVERYTHING
from lmrl.testing.toy_policy import ToyPolicy, logprobs_of
from lmrl.testing.trial import Trial

NEEDS = {
    "values": "neither rollout.values, rollout.bootstrap_values nor the policy's values",
    "reference": "no reference_logprobs",
}
PROPORTIONAL = 1e-4
PENALTY = 10.0
"""The KL coefficient of the penalty that an update must react to."""


def check_contract(trial: Trial) -> str:
    """``build`` makes an optimizer of default settings, and what its methods return has the right types and shapes."""
    if not isinstance(trial.full_settings, OptimizerSettings):
        return (
            f"the settings are {type(trial.full_settings).__name__}, which is no OptimizerSettings; let the dataclass "
            "inherit from lmrl.OptimizerSettings, because the trainer reads epochs, minibatches and loss_aggregation"
        )
    optimizer = trial.build()
    if not isinstance(optimizer, PolicyOptimizer):
        return f"build(settings) returned {kind_of(optimizer)}; expected a lmrl.PolicyOptimizer, so inherit from it"
    data = trial.experience()
    if isinstance(data, Rollout):
        wrong = wrong_informative(optimizer, data)
        if not optimizer.defines("pairs"):
            wrong = wrong or wrong_advantages(optimizer.advantages(data), data.action_mask)
        if wrong:
            return wrong
    batch = trial.batch(optimizer, data)
    policy = trial.toy_policy(optimizer)
    wrong = wrong_columns("the columns of statistics()", optimizer.statistics(policy, batch), batch.action_mask)
    if wrong:
        return wrong
    return wrong_loss(optimizer.loss(policy, _with_means(optimizer, policy, batch)), batch.action_mask)


def check_gradient(trial: Trial) -> str:
    """The loss is finite and its gradient reaches the policy."""
    outcome = trial.update(trial.experience())
    if not outcome.is_finite:
        return (
            "the gradient holds a NaN or an infinity; expected finite numbers: look for a division or a logarithm of 0"
        )
    if outcome.actor_norm == 0:
        return (
            "no gradient reaches the policy, though scores differ; expected one: compute the losses from "
            "policy.evaluate(batch) without detach(), .data or torch.no_grad()"
        )
    return ""


def check_needs(trial: Trial) -> str:
    """Declared needs are those that are read."""
    needs = trial.spec.needs
    declared = frozenset(need for need in EVERYTHING if getattr(needs, need))
    wrong = _undeclared(trial, declared)
    if wrong:
        return wrong
    for need in sorted(declared):
        if not _undeclared(trial, declared - {need}):
            return (
                f"the spec declares Needs({need}=True), but {NEEDS[need]} was read; expected it to be read, because "
                "supplying it costs time in every update: take it out of Needs, or read it"
            )
    if trial.further and not _undeclared(trial, declared, further=()):
        return (
            "the optimizer makes further requests, but neither rollout.further_scores nor rollout.further_responses "
            "was read; expected one of them, because sampling costs time in every update: take further_requests out"
        )
    if needs.experience != "rollouts" and needs.minimum_group_size > 1:
        return (
            f"the spec declares Needs(minimum_group_size={needs.minimum_group_size}), but what it learns from "
            f"({needs.experience}) has no groups; take it out of Needs"
        )
    smallest = trial.update(trial.experience(group_size=needs.minimum_group_size))
    if not smallest.is_finite or smallest.actor_norm == 0:
        found = "no gradient" if smallest.is_finite else "a NaN or an infinity"
        return (
            f"with {needs.minimum_group_size} answer(s) to each prompt there is {found}; expected a gradient, because "
            "the spec allows groups of that size: declare Needs(minimum_group_size=...) with the smallest to learn from"
        )
    return ""


def check_rewards(trial: Trial) -> str:
    """The KL penalty in the shaped rewards changes the update, unless the spec declares ``reads_rewards=False``."""
    data = trial.experience()
    if not isinstance(data, Rollout):
        return ""
    reads = trial.difference(trial.update(data), trial.update(_with_penalty(trial, data))) > 0
    if reads and not trial.spec.reads_rewards:
        return (
            "the spec declares reads_rewards=False, but the KL penalty in rollout.rewards changes the update; expected "
            "no change, because users are told that kl.beta has no effect: take reads_rewards=False out of the spec"
        )
    if not reads and trial.spec.reads_rewards:
        return (
            f"a KL penalty of beta {PENALTY:g} on all actions but the last changes nothing in the update; expected a "
            "change, because otherwise kl.beta has no effect: compute credit from rollout.rewards (rewards.sum(1), "
            "ops.returns_to_go) instead of rollout.scores, which are without the penalty, or declare "
            "OptimizerSpec(reads_rewards=False) if the method by design compares scores alone"
        )
    return ""


def check_mutation(trial: Trial) -> str:
    """Neither the rollout nor the batch is changed, bit for bit."""
    optimizer = trial.build()
    data = trial.experience()
    before = clone(data)
    batch = trial.batch(optimizer, data)
    changed, method = first_change(before, data), "advantages() or pairs()"
    if not changed and isinstance(data, Rollout):
        optimizer.informative(data.scores, data.group)
        changed, method = first_change(before, data), "informative()"
    if not changed:
        before = clone(batch)
        policy = trial.toy_policy(optimizer)
        optimizer.loss(policy, _with_means(optimizer, policy, batch))
        changed, method = first_change(before, batch), "loss() or statistics()"
    if not changed:
        return ""
    return (
        f"{method} changed {changed} of what it was given; expected it untouched, because epochs and observers read "
        "it again: write the result into a new tensor instead of using in-place operations"
    )


def check_state(trial: Trial) -> str:
    """After ``state_dict``, a file and ``load_state_dict`` a new instance goes on exactly as the old one."""
    old = trial.build()
    for seed in (1, 2):
        trial.update(trial.experience(seed), old)
    state = old.state_dict()
    odd = wrong_state(state, "state_dict()")
    if odd:
        return odd
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    new = trial.build()
    new.load_state_dict(torch.load(file, weights_only=True))
    for seed in (3, 4):
        expected, found = trial.update(trial.experience(seed), old), trial.update(trial.experience(seed), new)
        difference = trial.difference(expected, found)
        if difference:
            return (
                f"after state_dict() and load_state_dict() the next gradient differs by {difference:.0%} from that of "
                "the optimizer that went on; expected the same: put everything that changes from update to update "
                "into state_dict() and take it back in load_state_dict()"
            )
    return ""


def check_first_step(trial: Trial) -> str:
    """On the first step from the sampling policy, a logged ratio is 1 and what measures a distance to it is 0."""
    metrics = trial.update(trial.experience(), model=trial.sampling_policy).metrics
    for name, expected in (("ratio", 1.0), ("clip_fraction", 0.0), ("approximate_kl", 0.0)):
        found = metrics.get(name, expected)
        if not math.isclose(found, expected, abs_tol=1e-4):
            return (
                f"before the first step the metric {name} is {found:.4g}; expected {expected:g}, because the policy "
                "is still the one that sampled: compare policy.evaluate(batch).logprobs with batch.proximal_logprobs"
            )
    return ""


@torch.no_grad()
def check_importance(trial: Trial) -> str:
    """The loss of the policy is proportional to ``batch.advantages``, so that weights on them correct the samples."""
    data, optimizer = trial.experience(), trial.build()
    if not isinstance(data, Rollout) or optimizer.defines("pairs") or not trial.spec.needs.importance:
        return ""
    batch, policy = trial.batch(optimizer, data), trial.toy_policy(optimizer)
    factors = 1 + torch.arange(len(batch)) % 3  # of rows: some losses are of whole rows

    def losses(factor: Tensor) -> Tensor:
        policy.forget()
        changed = replace(batch, advantages=batch.advantages * factor[:, None])
        return optimizer.loss(policy, _with_means(optimizer, policy, changed)).losses

    rest = losses(torch.zeros_like(factors))
    once = losses(torch.ones_like(factors)) - rest
    if not once.any():
        return (
            "the loss is the same without batch.advantages; expected a loss that is proportional to them, because the "
            "trainer corrects samples of another distribution by weighting them: multiply by batch.advantages, or "
            "declare Needs(importance=False)"
        )
    scale = (factors if once.ndim == 1 else factors[:, None]) * once
    difference = (losses(factors) - rest - scale).abs().max()
    if difference > PROPORTIONAL * once.abs().max().clamp_min(1e-6):
        return (
            "with the advantages of some rows doubled or tripled the loss does not grow by as much; expected a loss of "
            "the policy that is proportional to batch.advantages, because the trainer corrects samples of another "
            "distribution by weighting them: multiply by batch.advantages, or declare Needs(importance=False)"
        )
    return ""


@torch.no_grad()
def _with_penalty(trial: Trial, data: Rollout) -> Rollout:
    """Return the rollout with a further KL penalty in the rewards of every action but the last of a row."""
    reference = logprobs_of(trial.reference, data.inputs, data.action_mask)
    behind = data.action_mask.long().flip(1).cumsum(1).flip(1)
    penalty = shaping_term(data.proximal_logprobs, reference, PENALTY).masked_fill(behind < 2, 0)
    return replace(data, rewards=data.rewards + penalty)


@torch.no_grad()
def _with_means(optimizer: PolicyOptimizer, policy: ToyPolicy, batch: Any) -> Any:
    """Return the batch with the means of the optimizer's statistics, if it has any."""
    if not optimizer.defines("statistics"):
        return batch
    statistics = optimizer.statistics(policy, batch)
    return replace(batch, means={name: float(column.float().mean()) for name, column in statistics.items()})


def _undeclared(trial: Trial, supplied: frozenset[str], **changes: Any) -> str:
    """Return the sentence about what is read of what is not ``supplied``, or ""."""
    try:
        trial.update(trial.experience(supplied=supplied, **changes), supplied=supplied)
    except UndeclaredNeed as error:
        if "further_requests" in str(error):
            return f"{error}; expected further requests where their scores are read"
        need = next((name for name in EVERYTHING if f"Needs({name}=True)" in str(error)), "...")
        what = str(error).partition(" was read")[0]
        return (
            f"{what} was read, but the spec does not declare it; expected only what Needs names: register the "
            f"optimizer with Needs({need}=True), or do not read it"
        )
    return ""
