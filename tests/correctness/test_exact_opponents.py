"""Optimizers that ask or imitate other models, all responses of both enumerated, against the gradients of their papers.

What their sampled losses have for an expectation is written down here once more, as a sum over responses.
"""

import pytest
import torch
from torch.nn.functional import logsigmoid

from lmrl.algorithms import Mixture
from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.ops import kl_divergence
from lmrl.plugins import PluginManager
from lmrl.testing import expected_update, policy_parameters, random_problem, train_exactly
from lmrl.testing.exact import flatten
from lmrl.testing.exact_models import ExactModels, conditionals
from lmrl.training.update_settings import TrainSettings

SUM = {"loss_aggregation": "sequence_sum"}


@pytest.fixture(scope="module")
def problem():
    return random_problem(1, vocabulary=3, max_new_tokens=2)


@pytest.fixture
def policy(problem):
    return problem.policy(noise=0.3, seed=3)


def spec_of(name):
    return PluginManager().get("optimizer", name)


def gradient(problem, policy, objective):
    """Return the gradient of ``objective(table)`` by the policy's parameters."""
    with torch.enable_grad():
        value = objective(problem.table(policy))
        return flatten(torch.autograd.grad(value, policy_parameters(policy), materialize_grads=True))


def update_of(problem, policy, name, kl=None, **settings):
    spec = spec_of(name)
    return expected_update(spec, problem, settings=spec.settings(**settings), policy=policy, kl=kl)


def assert_same(found, expected):
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def mean_of_prompts(problem, column):
    return column.view(len(problem.prompts), -1).sum(1).mean()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_gkd_descends_the_divergence_in_the_states_that_the_student_visits(problem, policy, beta):
    teacher = conditionals(problem, problem.optimum(0.5))

    def objective(table):
        student = table.logits.log_softmax(-1)
        mixture = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
        if beta in (0, 1):
            states = kl_divergence(teacher, student) if beta == 0 else kl_divergence(student, teacher)
        else:
            states = beta * kl_divergence(teacher, mixture) + (1 - beta) * kl_divergence(student, mixture)
        drawn = table.log_probabilities.detach().exp()  # no gradient through what was drawn
        return -mean_of_prompts(problem, drawn * states.masked_fill(~problem.action_mask, 0).sum(1))

    found = update_of(problem, policy, "gkd", KLSettings(0.5), beta=beta, **SUM)
    # On an exact problem the teacher is the optimum for the run's beta; the KL of the run's reward is not read.
    assert_same(found, gradient(problem, policy, objective))


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_xpo_descends_dpos_loss_against_the_reference_and_its_likelihood(problem, policy, labels):
    beta, alpha, size = 0.3, 0.2, problem.responses_per_prompt
    reference = problem.reference_table.log_probabilities.view(-1, size)
    rewards = problem.rewards.view(-1, size)
    gain = rewards[:, :, None] - rewards[:, None, :]
    preferred = gain.sigmoid() if labels == "soft" else (gain > 0).double()
    kept = torch.ones_like(gain) if labels == "soft" else (gain != 0).double()

    def objective(table):
        logprobs = table.log_probabilities.view(-1, size)
        ratio = logprobs - reference
        gap = ratio[:, :, None] - ratio[:, None, :]
        losses = -preferred * logsigmoid(beta * gap) - (1 - preferred) * logsigmoid(-beta * gap)
        losses = losses + alpha * logprobs[:, None, :]
        weights = logprobs.detach().exp()[:, :, None] * reference.exp()[:, None, :] * kept
        return -(weights * losses).sum((1, 2)).mean()

    found = update_of(problem, policy, "xpo", beta=beta, alpha=alpha, labels=labels)
    assert_same(found, gradient(problem, policy, objective))


@pytest.mark.parametrize("placement", ["reward", "loss"])
@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
def test_nash_md_ascends_the_preference_over_the_mixture_minus_the_kl(problem, policy, mixture, placement):
    kl, size, temperature = KLSettings(0.2, placement=placement), problem.responses_per_prompt, 0.7
    with torch.no_grad():
        table = problem.table(policy)
    opponent = ExactModels(
        problem, spec_of("nash_md").build(spec_of("nash_md").settings(mixture=mixture)), spec_of("nash_md").needs, 0.2
    )
    [drawn] = opponent.further(table)
    rewards = problem.rewards.view(-1, size)
    preferred = ((rewards[:, :, None] - rewards[:, None, :]) / temperature).sigmoid()
    chance = (preferred * drawn.exp().view(-1, 1, size)).sum(2).flatten()

    def objective(now):
        share = now.log_probabilities.exp()
        ratio = now.log_probabilities - problem.reference_table.log_probabilities
        return mean_of_prompts(problem, share * chance) - kl.beta * mean_of_prompts(problem, share * ratio)

    found = update_of(problem, policy, "nash_md", kl, mixture=mixture, temperature=temperature)
    assert_same(found, gradient(problem, policy, objective))


def test_conditionals_give_back_the_distribution_of_whole_responses(problem, policy):
    for log_probabilities in (problem.optimum(0.3), problem.table(policy).log_probabilities.detach()):
        before = conditionals(problem, log_probabilities)
        chosen = before.gather(-1, problem.inputs.action_ids[..., None]).squeeze(-1)
        total = chosen.double().masked_fill(~problem.action_mask, 0).sum(1)
        torch.testing.assert_close(total, log_probabilities.double(), atol=1e-5, rtol=1e-5)


def test_a_mixture_is_the_normalised_product_of_powers_in_every_state(problem, policy):
    class Mixed(type(spec_of("nash_md").build(spec_of("nash_md").settings()))):
        def models(self):
            return {"opponent": Mixture({"policy": 0.6, "reference": 0.4})}

    spec = spec_of("nash_md")
    with torch.no_grad():
        table = problem.table(policy)
    [found] = ExactModels(problem, Mixed(spec.settings()), spec.needs, 0.1).further(table)
    product = 0.6 * table.logits.log_softmax(-1) + 0.4 * problem.reference_table.logits.log_softmax(-1)
    chosen = product.log_softmax(-1).gather(-1, problem.inputs.action_ids[..., None]).squeeze(-1)
    torch.testing.assert_close(found.float(), chosen.masked_fill(~problem.action_mask, 0).sum(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "settings", "closed"), [("gkd", {}, 0.97), ("xpo", {"beta": 0.3}, 0.9)])
def test_training_comes_to_the_optimum(name, settings, closed):
    """GKD's teacher is the optimum; XPO's loss has it for a minimum, where preferences follow the scores."""
    spec = spec_of(name)
    train = TrainSettings(updates=120, prompts_per_update=32, group_size=4, learning_rate=5e-3, schedule="linear")
    problem = random_problem(0)
    curve = train_exactly(problem, spec, spec.settings(**settings), kl=KLSettings(0.3), train=train, every=120)
    assert curve.last.gap_closed > closed
