"""Rollouts, pairs and logged answers of enumerated responses: what an engine and the stage would have made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lmrl.algorithms import ops
from lmrl.algorithms.experience import DemonstrationBatch, LabelledBatch, PairBatch, Responses, TrajectoryBatch
from lmrl.algorithms.kl import KLSettings, shape_rewards
from lmrl.algorithms.rollout import Rollout
from lmrl.plugins.specs import Needs
from lmrl.testing.exact import ExactProblem, PolicyTable


def make_rollout(
    problem: ExactProblem,
    table: PolicyTable,
    rows: Tensor,
    group: Tensor,
    kl: KLSettings,
    needs: Needs,
    further: Tensor | None = None,
) -> Rollout:
    """Return the rollout of the responses at these places of the enumeration, (B,), as sampled by ``table``'s policy.

    ``group`` (B,) numbers the groups. What ``needs`` declares is in it, as the RL stage puts it there; the
    KL coefficient is ``kl.beta``. ``further`` (B, K) are the places of the responses to further requests.
    """
    mask = problem.action_mask[rows]
    logprobs = table.logprobs.detach()[rows]
    reference_logprobs = problem.reference_table.logprobs[rows]
    scores = problem.rewards[rows].float()
    declared: dict[str, Tensor] = {}
    if needs.reference or (kl.placement == "loss" and kl.beta > 0):
        declared["reference_logprobs"] = reference_logprobs
    if needs.values:
        assert table.values is not None and table.bootstrap_values is not None
        declared["values"] = table.values.detach()[rows]
        declared["bootstrap_values"] = table.bootstrap_values.detach()[rows]
    beside: list[Responses] = []
    if further is not None:
        declared["further_scores"] = problem.rewards[further].float()
        beside = [responses_at(problem, column, needs) for column in further.unbind(1)]
    return Rollout(
        inputs=problem.inputs.select(rows),
        action_mask=mask,
        sampler_logprobs=logprobs,
        rewards=shape_rewards(scores, logprobs, reference_logprobs, mask, kl, kl.beta),
        scores=scores,
        terminated=torch.ones_like(group, dtype=torch.bool),
        truncated=torch.zeros_like(group, dtype=torch.bool),
        group=group,
        declared=declared,
        further=tuple(beside),
    )


def draw_pairs(problem: ExactProblem, prompts: Tensor, generator: torch.Generator, needs: Needs) -> PairBatch:
    """Draw two answers of the reference to each of ``prompts`` (P,), and which one is preferred.

    The first is preferred with probability sigmoid(r_1 - r_2) (Bradley and Terry 1952): the preferences for which
    DPO's optimum is the problem's (Rafailov et al. 2023, eq. 1 and 4).
    """
    distribution = problem.reference_table.log_probabilities
    first = problem.draw(distribution, prompts, generator)
    second = problem.draw(distribution, prompts, generator)
    uniform = torch.rand(len(prompts), generator=generator, dtype=torch.float64).to(first.device)
    wins = uniform < torch.sigmoid(problem.rewards[first] - problem.rewards[second])
    chosen, rejected = torch.where(wins, first, second), torch.where(wins, second, first)
    return PairBatch(responses_at(problem, chosen, needs), responses_at(problem, rejected, needs))


def draw_labelled(problem: ExactProblem, prompts: Tensor, generator: torch.Generator, needs: Needs) -> LabelledBatch:
    """Draw one answer of the reference to each of ``prompts`` (B,), and whether it is called good.

    That has the probability sigmoid(r - E_ref[r]). The mismatched answers are further draws: answers that
    were given elsewhere.
    """
    distribution = problem.reference_table.log_probabilities
    rows = problem.draw(distribution, prompts, generator)
    usual = float((distribution.exp() * problem.rewards).sum() / len(problem.prompts))
    uniform = torch.rand(len(prompts), generator=generator, dtype=torch.float64).to(rows.device)
    desirable = uniform < torch.sigmoid(problem.rewards[rows] - usual)
    mismatched = problem.draw(distribution, prompts, generator)
    return LabelledBatch(responses_at(problem, rows, needs), desirable, responses_at(problem, mismatched, needs))


def draw_trajectories(
    problem: ExactProblem, prompts: Tensor, generator: torch.Generator, needs: Needs
) -> TrajectoryBatch:
    """Draw one answer of the reference to each of ``prompts`` (B,), as if somebody had logged it with its reward."""
    rows = problem.draw(problem.reference_table.log_probabilities, prompts, generator)
    responses = responses_at(problem, rows, needs)
    rewards = ops.last_actions(responses.action_mask) * problem.rewards[rows].float()[:, None]
    return TrajectoryBatch(responses, rewards, torch.ones_like(rows, dtype=torch.bool))


def draw_demonstrations(
    problem: ExactProblem, prompts: Tensor, generator: torch.Generator, needs: Needs
) -> DemonstrationBatch:
    """Draw two answers of the reference to each of ``prompts`` (B,), and take the one with the higher reward."""
    distribution = problem.reference_table.log_probabilities
    first = problem.draw(distribution, prompts, generator)
    second = problem.draw(distribution, prompts, generator)
    better = torch.where(problem.rewards[first] >= problem.rewards[second], first, second)
    return DemonstrationBatch(responses_at(problem, better, needs))


def responses_at(problem: ExactProblem, rows: Tensor, needs: Needs) -> Responses:
    """Return the responses at these places of the enumeration, (B,), with the reference if it is needed."""
    declared = {"reference_logprobs": problem.reference_table.logprobs[rows]} if needs.reference else {}
    columns = {"scores": problem.rewards[rows].float()}
    return Responses(problem.inputs.select(rows), problem.action_mask[rows], declared, columns)
