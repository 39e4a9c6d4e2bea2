"""GRPO and its variants against numbers worked out by hand and exact gradients, and what GSPO and CISPO share."""

import math

import pytest
import torch

from lmrl.algorithms.kl import KLSettings
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.testing import expected_update, random_problem
from lmrl_grpo import GRPOSettings

RELATIVE = ["grpo", "gspo", "cispo", "gmpo", "sapo"]
UNDIVIDED = {name: {"normalise_std": False} for name in RELATIVE} | {"grpo": {"normalisation": "none"}}

# Two prompts, labelled 40 and -3, of three and two answers that are no neighbours. The last action holds the score, the
# rest is KL shaping: returns 3, 4, 6, 2, 0 around the means 3 and 3, with sample deviations 3 and sqrt(2).
REWARDS = [[-1.0, 4.0], [0.0, 4.0], [6.0, 0.0], [1.0, 1.0], [0.5, -0.5]]
MASK = [[1, 1], [1, 1], [1, 0], [1, 1], [1, 1]]
SCORES, GROUP = [4.0, 4.0, 6.0, 1.0, -0.5], [40, -3, 40, -3, 40]
CENTRED = [0.0, 1.0, 3.0, -1.0, -3.0]
DIVIDED = [0.0, math.sqrt(0.5), 1.0, -math.sqrt(0.5), -1.0]


def by_tokens(answers):
    return torch.tensor(answers)[:, None] * torch.tensor(MASK)


@pytest.mark.parametrize("name", RELATIVE)
def test_every_token_gets_its_answers_place_within_the_group(by_hand, name):
    rollout = by_hand.rollout(REWARDS, MASK, SCORES, GROUP)
    found = by_hand.make(name).advantages(rollout)
    assert torch.allclose(found.advantages, by_tokens(DIVIDED), atol=1e-4)
    assert torch.allclose(found.metrics["return"], torch.tensor([3.0, 4.0, 6.0, 2.0, 0.0]))
    assert not found.metrics["tied"].any()
    undivided = by_hand.make(name, **UNDIVIDED[name]).advantages(rollout)
    assert torch.allclose(undivided.advantages, by_tokens(CENTRED))


@pytest.mark.parametrize("name", RELATIVE)
def test_trap_25_groups_of_equal_scores(by_hand, name):
    """Nothing without a KL shaping, and with one its differences, as small as they are."""
    optimizer, scores = by_hand.make(name), [0.1, 0.1, 0.1, 5.0, 3.0]
    found = optimizer.advantages(by_hand.rollout([[s] for s in scores], group=[0, 0, 0, 1, 1]))
    assert torch.equal(found.advantages[:3], torch.zeros(3, 1)) and found.advantages[3:].abs().min() > 0.5
    assert found.metrics["tied"].tolist() == [1, 1, 1, 0, 0]
    shaped = [[1e-6, 0.1], [-1e-6, 0.1], [0.0, 0.1]]
    found = optimizer.advantages(by_hand.rollout(shaped, scores=[0.1] * 3, group=[7] * 3)).advantages
    assert torch.allclose(found, torch.tensor([[1e-6] * 2, [-1e-6] * 2, [0.0] * 2]), atol=1e-7)


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in RELATIVE), *(("grpo", {"normalisation": n}) for n in ("none", "beta"))],
)
def test_at_the_optimum_nothing_is_left_to_learn(by_hand, name, settings):
    """Where pi = pi_ref exp(score / beta) / Z, score - beta log(pi / pi_ref) is beta log Z for every answer."""
    reference, scores, beta = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 0.0, 1.0]), 0.5
    optimum = torch.log_softmax(reference.log() + scores / beta, 0)
    rewards = scores - beta * (optimum - reference.log())
    rollout = by_hand.rollout(rewards[:, None].tolist(), scores=scores.tolist(), group=[1, 1, 1])
    found = by_hand.make(name, **settings).advantages(rollout).advantages
    assert found.abs().max() < 0.01, "only rounding, and epsilon is larger"


@pytest.mark.parametrize("name", RELATIVE)
def test_withheld_scores_are_compared_with_nothing(by_hand, name):
    rewards, cut = [[2.0], [4.0], [0.0], [0.0], [1.0]], [False, False, True, True, False]
    optimizer = by_hand.make(name, **UNDIVIDED[name])
    found = optimizer.advantages(by_hand.rollout(rewards, group=[0, 0, 0, 1, 1], truncated=cut)).advantages
    assert found.tolist() == [[-1.0], [1.0], [0.0], [0.0], [0.0]], "an answer without any other has no advantage either"


def test_bnpo_by_hand(by_hand):
    # p is 1/4 and 3/4, as in the test of ops.beta_normalise; the KL shaping is in the returns and not in p.
    scores, group = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0], [5, 9] * 4
    density = (3 / 16) ** (1 / 6) * math.gamma(7 / 3) / math.gamma(7 / 6) ** 2
    optimizer = by_hand.make("grpo", normalisation="beta")
    rollout = by_hand.rollout(
        [[0.5 * (row == 0), score] for row, score in enumerate(scores)], scores=scores, group=group
    )
    found = optimizer.advantages(rollout).advantages[:, 0] * density
    assert torch.allclose(found, torch.tensor([1.125, 0.25, -0.375, 0.25, -0.375, 0.25, -0.375, -0.75]))
    with pytest.raises(SettingsError, match=r"a score of 0\.5.*BNPO"):
        optimizer.advantages(by_hand.rollout([[0.5], [1.0]], group=[0, 0]))


def test_overlong_answers_lose_up_to_a_point(by_hand):
    mask = [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    rewards = [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    optimizer = by_hand.make("grpo", overlong_length=4, overlong_buffer=2, normalisation="none")
    found = optimizer.advantages(by_hand.rollout(rewards, mask, group=[1] * 4))
    assert found.metrics["overlong_penalty"].tolist() == [-1.0, -0.5, 0.0, 0.0]
    assert found.metrics["return"].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert found.advantages[:, 0].tolist() == [-0.625, -0.125, 0.375, 0.375]
    divided = by_hand.make("grpo", overlong_length=4, overlong_buffer=2)
    found = divided.advantages(by_hand.rollout(rewards, mask, group=[1] * 4)).advantages
    assert found[0, 0] < -1, "equal scores of unequal length are no tie"


def clipped(by_hand, ratios, **settings):
    """One step on answers of one token with the advantages 1, 1, -1 and -1."""
    optimizer = by_hand.make("grpo", normalisation="none", **settings)
    rollout = by_hand.rollout([[1.0], [1.0], [-1.0], [-1.0]], group=[3] * 4)
    return by_hand.gradient(optimizer, rollout, by_hand.table([[math.log(ratio)] for ratio in ratios])).flatten() * 4


def test_trap_30_clipped_tokens_have_no_gradient(by_hand):
    assert torch.allclose(clipped(by_hand, (1.3, 0.7, 0.7, 1.3)), torch.tensor([0.0, -0.7, 0.0, 1.3]))
    assert by_hand.metrics["optimizer/clip_fraction"] == 0.5
    assert by_hand.metrics["optimizer/ratio"] == pytest.approx(1.0)
    expected = sum(ratio - 1 - math.log(ratio) for ratio in (1.3, 0.7)) / 2
    assert by_hand.metrics["optimizer/approximate_kl"] == pytest.approx(expected, rel=1e-4)


def test_trap_31_asymmetric_bounds_are_not_swapped(by_hand):
    found = clipped(by_hand, (1.25, 1.35, 0.75, 0.85), clip_range=0.2, clip_range_high=0.3)
    assert torch.allclose(found, torch.tensor([-1.25, 0.0, 0.0, 0.85]))
    both = clipped(by_hand, (1.25, 1.15, 0.75, 0.85), clip_range=0.2)
    assert torch.allclose(both, torch.tensor([0.0, -1.15, 0.0, 0.85])), "clip_range_high 0 takes clip_range"


@pytest.mark.parametrize(
    ("aggregation", "divisors"),
    [("sequence_mean", [10, 10, 5, 10, 10]), ("token_mean", [9] * 5), ("sequence_sum", [5] * 5)],
)
@pytest.mark.parametrize("microbatch", [1000, 1])
def test_one_step_under_each_average(by_hand, aggregation, divisors, microbatch):
    optimizer = by_hand.make("grpo", normalisation="none", loss_aggregation=aggregation)
    behavior = [[-1.0, -2.0]] * 4 + [[-1.0, 0.0]]
    rollout = by_hand.rollout(REWARDS, MASK, SCORES, GROUP, behavior=behavior)
    found = by_hand.gradient(optimizer, rollout, by_hand.table(behavior), microbatch_tokens=microbatch)
    assert torch.allclose(found, -by_tokens(CENTRED) / torch.tensor(divisors)[:, None])
    assert by_hand.make("grpo").settings.loss_aggregation == "sequence_mean", "the paper's"


def test_trap_29_a_row_without_actions_counts_for_nothing(by_hand):
    optimizer = by_hand.make("grpo", normalisation="none")
    mask, group = [[1, 1], [1, 0], [0, 0]], [0, 0, 1]
    rollout = by_hand.rollout([[0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]], mask, group=group)
    found = by_hand.gradient(optimizer, rollout, by_hand.table([[0.0, 0.0]] * 3))
    assert torch.allclose(found, torch.tensor([[-0.25, -0.25], [0.5, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kl", [KLSettings(0.2), KLSettings(0.2, placement="loss")], ids=["reward", "loss"])
def test_dr_grpo_follows_the_exact_gradient_of_score_minus_kl(size, kl):
    """Up to (k - 1) / k, because the mean holds the answer itself; from the KL in the loss no mean is subtracted."""
    problem = random_problem(1, vocabulary=3, max_new_tokens=2, prompts=2)
    policy = problem.policy(noise=0.2)
    spec = PluginManager().get("optimizer", "grpo")
    settings = GRPOSettings(loss_aggregation="sequence_sum", normalisation="none")
    found = expected_update(spec, problem, settings=settings, policy=policy, group_size=size, kl=kl)
    whole, score = problem.gradient(policy, 0.2), problem.gradient(policy, 0.0)
    share = (size - 1) / size
    expected = share * whole if kl.placement == "reward" else share * score + (whole - score)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_dynamic_sampling_is_asked_for(by_hand):
    scores, group = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([8, 8, 2, 2])
    assert not by_hand.make("grpo").defines("informative")
    optimizer = by_hand.make("grpo", dynamic_sampling=True)
    assert optimizer.defines("informative")
    assert optimizer.informative(scores, group).tolist() == [False, False, True, True]


VARIANTS = {
    "grpo": {},
    "dr_grpo": {"normalisation": "none", "loss_aggregation": "sequence_sum"},
    "dapo": {
        "clip_range_high": 0.28,
        "loss_aggregation": "token_mean",
        "overlong_length": 4,
        "overlong_buffer": 2,
        "dynamic_sampling": True,
    },
    "bnpo": {"normalisation": "beta", "loss_aggregation": "sequence_sum", "clip_range_high": 0.28},
}


def has_cat(prompts, responses):
    return [float("cat" in response) for response in responses]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_of_each_variant_raises_the_reward(train, variant):
    settings = {**VARIANTS[variant], "epochs": 2, "minibatches": 2}
    records = train("grpo", reward=has_cat, settings=settings, group_size=8, updates=10, learning_rate=0.02)
    rewards = [record["rollout/reward"] for record in records[1:]]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.2
    assert records[1]["optimizer/steps"] == 4
    if variant == "dapo":
        lengths = [record["rollout/length"] for record in records[1:]]
        assert sum(lengths[-3:]) / 3 < lengths[0] - 1, "answers of four tokens lost a point"


def test_it_needs_groups_and_nothing_else(by_hand, train):
    for name in RELATIVE:
        needs = by_hand.needs(name)
        assert needs.minimum_group_size == 2
        assert not (needs.values or needs.reference)
        with pytest.raises(SettingsError, match=r"at least 2 responses.*train\.group_size"):
            train(name, group_size=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip_range": 0.0}, "expected clip_range > 0"),
        ({"clip_range_high": -0.1}, "clip_range_high >= 0"),
        ({"normalisation": "rank"}, "normalisation"),
        ({"loss_aggregation": "sum"}, "sequence_sum"),
        ({"overlong_length": -1}, "overlong_length is -1; expected an integer >= 0"),
        ({"overlong_length": 8, "overlong_buffer": 0}, "expected a number from 1 to overlong_length, 8"),
        ({"overlong_length": 8, "overlong_buffer": 9}, "expected a number from 1 to overlong_length, 8"),
    ],
)
def test_bad_settings_are_refused(by_hand, settings, words):
    with pytest.raises(SettingsError, match=words):
        by_hand.make("grpo", **settings)
