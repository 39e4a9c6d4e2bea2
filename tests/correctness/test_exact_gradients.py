"""The expected first step of every KL-regularised optimizer, all groups of responses enumerated, against the exact one.

Where theory says that it is the gradient of J = E[r] - beta KL, or a multiple of it, it has to be; where theory says
that it is biased, the bias and its sign are stated.
"""

from __future__ import annotations

import pytest
import torch

from lmrl.algorithms.kl import KLSettings
from lmrl.config import build
from lmrl.plugins import PluginManager
from lmrl.testing import expected_update, policy_parameters, random_problem

IN_REWARD, IN_LOSS = KLSettings(0.3), KLSettings(0.3, placement="loss")
SUM = {"loss_aggregation": "sequence_sum"}
EXACT = {
    "reinforce": (1, SUM, 1.0),
    "a2c": (1, SUM, 1.0),
    "ppo": (1, {**SUM, "whiten_advantages": False, "gae_lambda": 1.0}, 1.0),
    "trpo": (1, {**SUM, "whiten_advantages": False, "gae_lambda": 1.0}, 1.0),
    "remax": (1, SUM, 1.0),
    "rloo": (2, SUM, 1.0),
    "reinforce_pp": (1, {**SUM, "whiten_advantages": False}, 1.0),
    # A baseline that holds the row itself takes away 1 / K of the gradient: the direction is exact, the length is not.
    "reinforce_pp_baseline": (2, {**SUM, "whiten_advantages": False}, 0.5),
    "grpo": (2, {**SUM, "normalisation": "none"}, 0.5),
    "cispo": (2, {**SUM, "normalise_std": False}, 0.5),
    "sapo": (2, {**SUM, "normalise_std": False}, 0.5),
}
"""By name: group size, settings, and the multiple of the exact gradient (of the reward's part) that is expected."""


@pytest.fixture(scope="module")
def problem():
    return random_problem(1, vocabulary=3, max_new_tokens=2)


def update_of(problem, name, kl, size, table):
    spec = PluginManager().get("optimizer", name)
    settings = build(spec.settings, table)
    starting = problem.policy(bool(spec.needs.values), spec.needs.values == "separate", noise=0.3, seed=3)
    found = expected_update(spec, problem, settings=settings, policy=starting, group_size=size, kl=kl)
    return found, starting


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", sorted(EXACT))
def test_kl_in_the_reward_gives_the_exact_gradient(problem, name):
    size, table, multiple = EXACT[name]
    found, policy = update_of(problem, name, IN_REWARD, size, table)
    if name == "reinforce_pp_baseline":
        # Its baseline is the group's mean score, without the KL: that part keeps its whole length.
        reward, whole = problem.gradient(policy, 0.0), problem.gradient(policy, IN_REWARD.beta)
        expected = multiple * reward + (whole - reward)
    else:
        expected = multiple * problem.gradient(policy, IN_REWARD.beta)
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize("name", sorted(EXACT))
def test_kl_in_the_loss_gives_the_exact_gradient(problem, name):
    size, table, multiple = EXACT[name]
    found, policy = update_of(problem, name, IN_LOSS, size, table)
    reward, whole = problem.gradient(policy, 0.0), problem.gradient(policy, IN_LOSS.beta)
    assert relative(found, multiple * reward + (whole - reward)) < 1e-4


def test_gspo_takes_the_gradient_of_answers_over_their_length(problem):
    """-s A with s = exp(mean log-ratio) weighs an answer of n tokens by 1 / n: towards short answers, in both signs."""
    found, policy = update_of(problem, "gspo", KLSettings(0.0), 2, {"normalise_std": False})
    lengths = problem.action_mask.sum(1)
    table = problem.table(policy)
    probabilities = table.log_probabilities.exp()
    mean = (probabilities.detach() * problem.rewards).sum()
    weighted = (probabilities * (problem.rewards - mean) / lengths).sum()
    # The weight 1 / n leaves the score function's mean at no zero, so the baseline's part is not free of bias.
    exact = torch.autograd.grad(weighted, policy_parameters(policy), materialize_grads=True)
    plain = problem.gradient(policy, 0.0)
    expected = torch.cat([g.reshape(-1) for g in exact])
    assert relative(found, 0.5 * plain) > 0.05, "it is biased"
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.95
    assert torch.nn.functional.cosine_similarity(found, plain, dim=0) > 0, "and still climbs"


def test_gmpo_takes_gspos_first_step(problem):
    """Nothing is clipped there, and the geometric mean of ratios is exp of the mean log-ratio."""
    found, _ = update_of(problem, "gmpo", IN_REWARD, 2, {"normalise_std": False})
    gspo, _ = update_of(problem, "gspo", IN_REWARD, 2, {"normalise_std": False})
    assert relative(found, gspo) < 1e-4


@pytest.mark.parametrize(("size", "eta"), [(2, 1.0), (2, 0.5), (3, 4.0)])
def test_rebel_takes_a_multiple_of_the_exact_gradient(problem, size, eta):
    """Of -2 / eta (R - R') grad (log pi(y) - log pi(y')) the expectation is 4 / eta grad J, in groups of any size."""
    found, policy = update_of(problem, "rebel", IN_REWARD, size, {"eta": eta})
    assert relative(found, 4 / eta * problem.gradient(policy, IN_REWARD.beta)) < 1e-4


def test_a_groups_deviation_makes_every_difference_count_alike(problem):
    """With two answers GRPO's advantage is +-1 / sqrt(2), however far the scores are apart: it climbs P(win) instead.

    So scaling the rewards does nothing to it, where the exact gradient scales along: against a KL in the reward this
    overweighs small differences.
    """
    size, table = 2, {**SUM, "normalisation": "std"}
    found, policy = update_of(problem, "grpo", KLSettings(0.0), size, table)
    larger = random_problem(1, vocabulary=3, max_new_tokens=2, scale=10.0)
    again, _ = update_of(larger, "grpo", KLSettings(0.0), size, table)
    assert relative(again, found) < 1e-3
    probabilities = problem.table(policy).log_probabilities.exp()
    fixed = probabilities.detach()
    wins = (problem.rewards[:, None] > problem.rewards[None, :]).double()
    chance = (probabilities[:, None] * fixed[None, :] * (wins - wins.T)).sum()
    gradient = torch.autograd.grad(chance, policy_parameters(policy), materialize_grads=True)
    expected = torch.cat([g.reshape(-1) for g in gradient])
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 1 - 1e-4


def test_token_mean_favours_tokens_of_short_answers_at_a_group_of_one(problem):
    """One answer at a time, its token mean divides its gradient by its length, whichever sign the advantage has."""
    found, policy = update_of(problem, "reinforce", KLSettings(0.0), 1, {"loss_aggregation": "token_mean"})
    assert relative(found, problem.gradient(policy, 0.0)) > 0.05


def test_k1_counted_once(problem):
    """In the reward or in the loss, not in both: the two placements agree with each other as well."""
    in_reward, _ = update_of(problem, "reinforce", IN_REWARD, 1, SUM)
    in_loss, _ = update_of(problem, "reinforce", IN_LOSS, 1, SUM)
    assert relative(in_reward, in_loss) < 1e-4


def test_raft_climbs_without_ever_seeing_the_reference(problem):
    """It imitates the winner: its step does not depend on where the KL would be, only on who wins."""
    found, policy = update_of(problem, "raft", KLSettings(0.0), 2, {})
    shaped, _ = update_of(problem, "raft", IN_REWARD, 2, {})
    assert torch.allclose(found, shaped, atol=1e-6)
    assert torch.nn.functional.cosine_similarity(found, problem.gradient(policy, 0.0), dim=0) > 0
