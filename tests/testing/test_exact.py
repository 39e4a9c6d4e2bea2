"""Exact problems: what they claim to know, that the decode engine agrees, and what optimizers do on average."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2

from lmrl.algorithms.experience import Responses
from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.optimizer import Loss, OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.rollout import Advantages
from lmrl.config import build
from lmrl.engines import sample_batch
from lmrl.engines.local.engine import TransformersEngine
from lmrl.errors import ModelError, SettingsError
from lmrl.models import PolicyModel
from lmrl.models.text_policy import TextPolicy, score_logprobs, score_values
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import Needs, OptimizerSpec
from lmrl.testing import (
    ExactProblem,
    ExactTrainer,
    ascend_exactly,
    counting_problem,
    expected_update,
    policy_parameters,
    random_problem,
    tiny_llama,
    train_exactly,
)
from lmrl.testing.exact_policy import EnumeratedPolicy
from lmrl.testing.exact_rollouts import draw_labelled, draw_pairs, make_rollout
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings
from lmrl_ilql import ILQL
from lmrl_nlpo import NLPO
from lmrl_ppo import PPO, PPOSettings
from lmrl_reinforce import Reinforce, ReinforceSettings

REINFORCE = OptimizerSpec("reinforce", Reinforce, ReinforceSettings)
PPO_SPEC = OptimizerSpec("ppo", PPO, PPOSettings, Needs(values=True))
PLAIN_PPO = PPOSettings(whiten_advantages=False, gae_lambda=1.0, loss_aggregation="sequence_sum")


@pytest.fixture(scope="module")
def problem():
    return random_problem(0, vocabulary=4, prompts=2)


@pytest.fixture(scope="module")
def small():
    """Seven responses to each of two prompts, so that groups can be enumerated."""
    return random_problem(1, vocabulary=3, max_new_tokens=2, prompts=2)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("prompts", "spread"), [(1, 0.1), (3, 0.5)])
def test_probabilities_sum_to_one(prompts, spread):
    model = tiny_llama(4, spread=spread)
    problem = ExactProblem(model, [[1, 2], [3], [2, 2, 1]][:prompts], lambda *row: 0.0, eos_id=2, max_new_tokens=3)
    assert len(problem) == prompts * (1 + 3 + 9 * 4)
    rows = [
        tuple(row[:n]) for row, n in zip(problem.inputs.action_ids.tolist(), problem.inputs.action_counts, strict=True)
    ]
    assert len(set(rows)) == len(problem) // prompts
    assert all(2 not in row[:-1] and (row[-1] == 2 or len(row) == 3) for row in rows)
    policy = problem.policy(noise=0.2)
    sums = problem.table(policy).log_probabilities.exp().view(prompts, -1).sum(1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-6)


def test_a_table_is_what_the_scorers_say(problem):
    policy = problem.policy(with_values=True, noise=0.1)
    torch.nn.init.normal_(policy.value_head.weight)
    with torch.no_grad():
        table = problem.table(policy)
    assert torch.allclose(table.logprobs, score_logprobs(policy, problem.inputs, problem.spec, 50), atol=1e-6)
    before, after = score_values(policy, problem.inputs, 50)
    assert torch.allclose(table.values, before, atol=1e-6) and torch.allclose(table.bootstrap_values, after, atol=1e-6)
    for prompt, place in enumerate(problem.greedy(table).tolist()):
        greedy = problem.inputs.action_ids[place]
        samples = sample_batch(
            TransformersEngine(),
            policy.model,
            [problem.prompts[prompt]],
            replace(problem.spec, temperature=0.0),
            seed=0,
        )
        width = int(samples.inputs.action_counts[0])
        assert samples.inputs.action_ids[0, :width].tolist() == greedy[:width].tolist()


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5, 2.0])
def test_no_policy_is_better_than_the_optimum(problem, beta):
    best, optimum = problem.optimal_objective(beta), problem.optimum(beta)
    assert problem.objective_of(optimum, beta) == pytest.approx(best, abs=1e-9)
    assert problem.total_variation(optimum, beta) == pytest.approx(0, abs=1e-9)
    for seed in range(20):
        noise = torch.randn(len(problem), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        near = (optimum + 0.3 * noise).view(2, -1).log_softmax(1).flatten()
        measures = problem.measure(problem.policy(noise=0.3, seed=seed), beta)
        assert best >= problem.objective_of(near, beta) - 1e-12
        assert best > measures.objective and measures.gap_closed < 1 and 0 < measures.total_variation <= 1
        assert measures.objective == pytest.approx(measures.reward - beta * measures.kl, abs=1e-12)


def test_the_reference_has_closed_nothing(problem):
    measures = problem.measure(problem.policy(), 0.3)
    assert measures.gap_closed == pytest.approx(0, abs=1e-6) and measures.kl == pytest.approx(0, abs=1e-7)
    assert measures.objective == pytest.approx(float(problem.rewards.exp().log() @ _start(problem)), abs=1e-6)


def _start(problem):
    return problem.reference_table.log_probabilities.exp() / len(problem.prompts)


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_the_gradient_is_that_of_finite_differences(problem, beta):
    policy = problem.policy(noise=0.2, seed=3)
    gradient = problem.gradient(policy, beta)
    parameters, step = policy_parameters(policy), 2e-3
    generator = torch.Generator().manual_seed(0)
    for direction in (gradient, *(torch.randn(len(gradient), generator=generator) for _ in range(5))):
        direction = direction / direction.norm()
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                start = 0
                for parameter in parameters:
                    part = direction[start : start + parameter.numel()].view_as(parameter)
                    parameter.add_(part, alpha=sign * step)
                    start += parameter.numel()
            values.append(float(problem.objective(policy, beta).detach()))
        with torch.no_grad():
            start = 0
            for parameter in parameters:
                parameter.add_(direction[start : start + parameter.numel()].view_as(parameter), alpha=step)
                start += parameter.numel()
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float(gradient @ direction), abs=2e-3 * float(gradient.norm()))


def chi_square(counts, expected, groups):
    """Return the probability of so large a deviation; rare cells are pooled, and each group's total is given."""
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return chi2.sf(statistic, len(counts) - groups)


def responses_of(prompts, inputs):
    rows = zip(prompts.tolist(), inputs.action_ids.tolist(), inputs.action_counts.tolist(), strict=True)
    return [(prompt, *row[:length]) for prompt, row, length in rows]


def test_the_decode_engine_samples_the_enumerated_distribution(problem):
    policy, draws = problem.policy(noise=0.3, seed=5), 6000
    table = problem.table(policy)
    prompts = torch.arange(draws) % 2
    samples = sample_batch(
        TransformersEngine(), policy.model, [problem.prompts[p] for p in prompts], problem.spec, seed=0
    )
    places = {row: place for place, row in enumerate(responses_of(problem.prompt_index, problem.inputs))}
    found = torch.tensor([places[row] for row in responses_of(prompts, samples.inputs)])
    width = problem.inputs.action_ids.shape[1]
    assert torch.allclose(samples.sampler_logprobs[:, :width], table.logprobs[found], atol=1e-5)
    assert samples.terminated.all() and not samples.truncated.any()
    probabilities = table.log_probabilities.detach().exp()
    own = problem.draw(probabilities.log(), prompts, torch.Generator().manual_seed(0))
    assert torch.equal(problem.prompt_index[own], prompts)
    reference = problem.reference_table.log_probabilities.exp()
    for drawn in (found, own):
        counts = torch.bincount(drawn, minlength=len(problem)).double()
        assert chi_square(counts, probabilities * draws / 2, groups=2) > 1e-4
        assert chi_square(counts, reference * draws / 2, groups=2) < 1e-12  # it tells the policy from the reference


@pytest.mark.parametrize("kl", [KLSettings(0.0), KLSettings(0.3), KLSettings(0.3, placement="loss")], ids=str)
@pytest.mark.parametrize(("spec", "settings"), [(REINFORCE, None), (PPO_SPEC, PLAIN_PPO)], ids=["reinforce", "ppo"])
def test_the_expected_update_is_the_exact_gradient(problem, spec, settings, kl):
    policy = problem.policy(with_values=spec.needs.values, noise=0.2, seed=3)
    found = expected_update(spec, problem, settings=settings, policy=policy, kl=kl)
    assert relative(found, problem.gradient(policy, kl.beta)) < 1e-5


def test_an_instance_in_any_state_has_the_same_expectation(problem):
    policy = problem.policy(noise=0.2)
    optimizer = Reinforce(ReinforceSettings(epochs=3, minibatches=2))
    found = expected_update(optimizer, problem, policy=policy, kl=KLSettings(0.3), state={"baseline": 5.0})
    assert relative(found, problem.gradient(policy, 0.3)) < 1e-5
    assert optimizer.baseline is None and optimizer.settings.epochs == 3


@pytest.mark.parametrize(
    ("kl", "least"),
    [
        (KLSettings(0.3, "k2"), 0.1),
        (KLSettings(0.3, "k3"), 0.1),
        (KLSettings(0.3, "k2", "loss"), 0.02),
        (KLSettings(0.3, "k3", "loss"), 0.02),
    ],
    ids=str,
)
def test_other_estimators_of_the_kl_are_not_its_gradient(problem, kl, least):
    policy = problem.policy(noise=0.3, seed=3)
    assert relative(expected_update(REINFORCE, problem, policy=policy, kl=kl), problem.gradient(policy, 0.3)) > least


def test_token_mean_divides_the_weight_of_each_response_by_its_length(problem):
    """One row per minibatch: its mean over tokens is its sum over its length, so long responses count for less."""
    policy = problem.policy(noise=0.2)
    settings = ReinforceSettings(loss_aggregation="token_mean")
    found = expected_update(REINFORCE, problem, settings=settings, policy=policy)
    log_probabilities = problem.table(policy).log_probabilities
    weights = log_probabilities.detach().exp() * problem.rewards / problem.inputs.action_counts / 2
    expected = torch.autograd.grad((weights * log_probabilities).sum(), policy_parameters(policy))
    assert relative(found, torch.cat([part.flatten() for part in expected])) < 1e-5
    assert relative(found, problem.gradient(policy, 0.0)) > 0.05


def test_whitening_one_group_at_a_time_changes_the_direction(problem):
    policy = problem.policy(with_values=True, noise=0.2)
    whitened = replace(PLAIN_PPO, whiten_advantages=True)
    found = expected_update(PPO_SPEC, problem, settings=whitened, policy=policy)
    assert relative(found, problem.gradient(policy, 0.0)) > 0.1


class GroupMean(PolicyOptimizer):
    """The group's mean return as the baseline, the row's own included."""

    def advantages(self, rollout):
        centred = rollout.rewards.sum(1) - rollout.rewards.sum(1).mean()
        return Advantages(centred[:, None] * rollout.action_mask)

    def loss(self, policy, batch):
        return Loss(-batch.advantages * policy.evaluate(batch).logprobs)


class OwnStep(GroupMean):
    def step(self, minibatch):
        raise AssertionError("an expected update takes no step")


@pytest.mark.parametrize("kind", [GroupMean, OwnStep])
@pytest.mark.parametrize("size", [2, 3])
def test_a_baseline_that_holds_the_row_itself_shrinks_the_gradient(small, size, kind):
    """E[(r - mean) grad log pi] is (n - 1) / n of the gradient: why RLOO leaves the row out."""
    policy = small.policy(noise=0.3)
    spec = OptimizerSpec("group_mean", kind, OptimizerSettings)
    settings = OptimizerSettings(loss_aggregation="sequence_sum")
    found = expected_update(spec, small, settings=settings, policy=policy, group_size=size, kl=KLSettings(0.2))
    assert relative(found, (size - 1) / size * small.gradient(policy, 0.2)) < 1e-5


def test_expected_updates_are_weighted_steps_of_the_real_model(small):
    """The table's chain rule against one step of SGD on the model itself for every response."""
    kl = KLSettings(0.3, placement="loss")
    settings = PPOSettings(epochs=1, minibatches=1, entropy_coefficient=0.1)

    def policy_with_values():
        policy = small.policy(with_values=True, noise=0.2)
        torch.nn.init.constant_(policy.value_head.weight, 0.5)
        return policy

    table = small.table(policy_with_values())
    total = 0.0
    for place, probability in enumerate(table.log_probabilities.detach().exp().tolist()):
        policy = policy_with_values()
        before = torch.cat([p.detach().flatten() for p in policy_parameters(policy)])
        rows = torch.tensor([place])
        rollout = make_rollout(small, table, rows, rows * 0, kl, PPO_SPEC.needs)
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        train = TrainSettings(max_gradient_norm=0.0)
        face = TextPolicy(policy, small.spec, with_values=True)
        Updater(PPO(settings), face, train, kl=kl, torch_optimizer=optimizer).learn(rollout, update=1, seed=0)
        after = torch.cat([p.detach().flatten() for p in policy_parameters(policy)])
        total += probability / 2 * (after - before)
    found = expected_update(PPO_SPEC, small, settings=settings, policy=policy_with_values(), kl=kl)
    assert relative(found, total) < 1e-4


TRAIN = TrainSettings(
    updates=120, prompts_per_update=128, learning_rate=1e-2, value_learning_rate=1e-2, schedule="linear"
)


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize(
    ("spec", "settings"),
    [(REINFORCE, None), (PPO_SPEC, PPOSettings(epochs=2, minibatches=1))],
    ids=["reinforce", "ppo"],
)
def test_training_closes_the_gap(spec, settings, beta):
    problem = counting_problem(0)
    curve = train_exactly(problem, spec, settings, kl=KLSettings(beta), train=TRAIN, every=50)
    assert curve.updates == [0, 50, 100, 120] and len(curve.measures) == 4
    assert curve.column("gap_closed")[0] == pytest.approx(0, abs=1e-6)
    assert curve.last.gap_closed > 0.95
    assert curve.last.total_variation < curve.measures[0].total_variation


def test_the_same_seed_gives_the_same_curve(small):
    train = replace(TRAIN, updates=5, prompts_per_update=8, group_size=2)
    curves = [train_exactly(small, REINFORCE, train=train, seed=seed).measures for seed in (1, 1, 2)]
    assert curves[0] == curves[1] != curves[2]
    before = [parameter.clone() for parameter in small.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, small.reference.model.parameters(), strict=True))


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_the_exact_gradient_climbs_to_the_optimum(small, beta):
    """So the model can represent it: states such as 1 and 1 1 are told apart."""
    curve = ascend_exactly(small, beta=beta, updates=150, learning_rate=1e-2, every=50)
    assert curve.updates == [0, 50, 100, 150]
    assert curve.last.gap_closed > 0.99


class Preference(PolicyOptimizer):
    """DPO's loss in one line."""

    def loss(self, policy, batch):
        def margin(side):
            return (policy.evaluate(side).logprobs - side.reference_logprobs).sum(1)

        return Loss(-torch.nn.functional.logsigmoid(0.5 * (margin(batch.chosen) - margin(batch.rejected))))


def test_preferences_of_the_reference_lead_to_the_same_optimum(small):
    spec = OptimizerSpec("dpo", Preference, OptimizerSettings, Needs(reference=True, experience="preferences"))
    train = replace(TRAIN, updates=150, prompts_per_update=256)
    assert train_exactly(small, spec, kl=KLSettings(0.5), train=train, every=150).last.gap_closed > 0.9


def test_labels_and_preferences_follow_the_rewards(small):
    prompts, needs = torch.arange(20_000) % 2, Needs(reference=True)
    labelled = draw_labelled(small, prompts, torch.Generator().manual_seed(0), needs)
    rows = labelled.responses.inputs.rows
    usual = _start(small) @ small.rewards
    expected = torch.sigmoid(small.rewards - usual)[rows].mean()
    assert labelled.desirable.double().mean() == pytest.approx(float(expected), abs=0.02)
    assert torch.equal(small.prompt_index[rows], small.prompt_index[labelled.mismatched.inputs.rows])
    assert torch.equal(labelled.responses.reference_logprobs, small.reference_table.logprobs[rows])
    pairs = draw_pairs(small, prompts, torch.Generator().manual_seed(0), needs)
    chosen, rejected = small.rewards[pairs.chosen.inputs.rows], small.rewards[pairs.rejected.inputs.rows]
    # Of each pair the better one is chosen with probability sigmoid(|r_1 - r_2|).
    expected = torch.sigmoid((chosen - rejected).abs())[chosen != rejected].mean()
    assert (chosen > rejected)[chosen != rejected].double().mean() == pytest.approx(float(expected), abs=0.02)


class NeedsSpread(Reinforce):
    def informative(self, scores, group):
        low, high = torch.full((len(group),), 9.0), torch.full((len(group),), -9.0)
        low = low.scatter_reduce(0, group, scores, "amin")[group]
        return low < high.scatter_reduce(0, group, scores, "amax")[group]


def test_groups_that_say_nothing_are_drawn_anew():
    problem = counting_problem(0, vocabulary=3, max_new_tokens=1)
    spreads = {}
    for kind in (Reinforce, NeedsSpread):
        train = replace(TRAIN, group_size=2, resamples=20)
        trainer = ExactTrainer(problem, OptimizerSpec("kind", kind, ReinforceSettings), train=train)
        rollout = trainer.rollout(torch.Generator().manual_seed(0))
        spreads[kind] = (rollout.scores.view(-1, 2).std(1) > 0).double().mean()
    assert spreads[Reinforce] < 0.8 and spreads[NeedsSpread] == 1


def test_each_distinct_response_is_evaluated_once_with_the_same_result(small):
    """Losses and gradients of a batch with repetitions are those of a face that evaluates every row."""
    needs, rows = Needs(values=True), torch.tensor([3, 9, 3, 3, 0, 13, 9])
    batch = Responses(small.inputs.select(rows), small.action_mask[rows])
    found = []
    for kind in (EnumeratedPolicy, None):
        policy = small.policy(with_values=True, noise=0.3)
        torch.nn.init.ones_(policy.value_head.weight)
        face = TextPolicy(policy, small.spec, True) if kind is None else kind(small, policy, needs)
        now = face.evaluate(batch)
        weights = torch.linspace(-1, 1, now.logprobs.numel()).view_as(now.logprobs)
        (weights * (now.logprobs + 0.3 * now.values)).sum().backward()
        found.append((now.logprobs, now.values, now.entropy, policy.model.lm_head.weight.grad))
    for once, each in zip(*found, strict=True):
        assert torch.allclose(once, each, atol=1e-5)


def trainer_of(problem, name, updates=20, **settings):
    spec = PluginManager().get("optimizer", name)
    train = replace(TRAIN, updates=updates, prompts_per_update=64, group_size=2)
    return ExactTrainer(problem, spec, build(spec.settings, settings), kl=KLSettings(0.3), train=train)


def test_a_mask_policy_restricts_what_is_drawn_and_measured():
    problem = random_problem(0)
    trainer = trainer_of(problem, "nlpo", mask_top_p=0.5, mask_update_every=2, minibatches=1, epochs=1)
    for update in range(1, 5):
        log_probabilities, sets = trainer.table.log_probabilities, trainer.support.sets
        assert not sets.all() and torch.isinf(log_probabilities).any()
        assert float(log_probabilities.exp().sum()) == pytest.approx(1, abs=1e-5)
        rows = trainer.rollout(torch.Generator().manual_seed(update)).inputs.rows
        assert torch.isfinite(log_probabilities[rows]).all()
        expected = problem.objective_of(log_probabilities, 0.3)
        assert trainer.measure().objective == pytest.approx(expected)
        trainer.step()
        assert torch.equal(trainer.support.sets, sets) == (update % 2 == 1), "with every second update"


def test_a_mask_that_holds_everything_is_no_mask():
    same = {"epochs": 2, "minibatches": 2}
    curves = [trainer_of(random_problem(1), "ppo", updates=5, **same).run().measures]
    curves += [trainer_of(random_problem(1), "nlpo", updates=5, mask_top_p=1.0, **same).run().measures]
    for ppo, nlpo in zip(*curves, strict=True):
        assert nlpo.objective == pytest.approx(ppo.objective, abs=1e-4)


def test_logged_answers_are_measured_with_the_action_values_in_the_logits():
    problem = counting_problem(0)
    trainers = {beta: trainer_of(problem, "ilql", beta=beta) for beta in (0.0, 1 / 0.3)}
    ends = {beta: trainer.run(every=20).last for beta, trainer in trainers.items()}
    assert ends[1 / 0.3].gap_closed > 0.5
    assert abs(ends[0.0].gap_closed) < 0.2, "without its action values it imitates the reference"
    trained = trainers[1 / 0.3]
    plain = problem.measure(trained.policy, 0.3)
    assert abs(plain.gap_closed) < 0.2 and trained.measure() == ends[1 / 0.3], "and so does what is trained"
    again = trainer_of(problem, "ilql", beta=1 / 0.3).run(every=20)
    assert again.last == ends[1 / 0.3], "the same seed, the same heads"


def test_what_cannot_be_served_is_refused(small):
    strange = OptimizerSpec("strange", Preference, OptimizerSettings, Needs(experience="dreams"))
    with pytest.raises(SettingsError, match="strange learns from 'dreams'; expected rollouts, preferences"):
        ExactTrainer(small, strange).step()
    with pytest.raises(SettingsError, match="learns from trajectories"):
        expected_update(replace(strange, needs=Needs(experience="trajectories")), small)
    masked = OptimizerSpec("masked", type("Masked", (Reinforce,), {"processor": NLPO.processor}), ReinforceSettings)
    headed = OptimizerSpec("headed", type("Headed", (Reinforce,), {"heads": ILQL.heads}), ReinforceSettings)
    for unserved in (masked, headed):
        with pytest.raises(SettingsError, match="draws from the policy itself"):
            expected_update(unserved, small)
    grouped = OptimizerSpec("rloo", GroupMean, OptimizerSettings, Needs(minimum_group_size=2))
    with pytest.raises(SettingsError, match="needs at least 2"):
        ExactTrainer(small, grouped)
    with pytest.raises(SettingsError, match="adaptive"):
        ExactTrainer(small, REINFORCE, kl=KLSettings(controller="adaptive"))
    with pytest.raises(SettingsError, match="groups of 8"):
        expected_update(REINFORCE, small, group_size=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "at least one"),
        ({"prompts": [[1], []]}, "at least one"),
        ({"eos_id": 4}, "one of the vocabulary's 4"),
        ({"max_new_tokens": 12}, "at most 100000"),
        ({"reward": [1.0, 2.0]}, r"expected \(13,\)"),
    ],
)
def test_a_problem_that_cannot_be_enumerated_is_refused(change, message):
    arguments = {"prompts": [[1]], "reward": lambda *row: 1.0, "eos_id": 0, "max_new_tokens": 2} | change
    with pytest.raises(SettingsError, match=message):
        ExactProblem(tiny_llama(4), **arguments)


def test_a_model_with_further_tokens_is_noticed():
    with pytest.raises(ModelError, match="expected 1"):
        ExactProblem(tiny_llama(5), [[1]], lambda *row: 0.0, eos_id=0, max_new_tokens=2, vocabulary=4)
    problem = random_problem(0, vocabulary=4, max_new_tokens=2)
    with pytest.raises(ModelError, match="expected 1"):
        problem.table(PolicyModel(tiny_llama(6)))


def test_importing_the_helpers_is_cheap(root):
    code = "import lmrl.testing, sys; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
