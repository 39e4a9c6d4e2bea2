"""One update: what may not change a gradient, what the first step looks like, what stops it."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch

from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.optimizer import Loss, OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.rollout import Advantages
from lmrl.algorithms.sequences import split_groups
from lmrl.errors import NonFiniteError, SettingsError
from lmrl.plugins.specs import Needs
from lmrl.training.policy import LocalPolicy
from lmrl.training.schedule import learning_rate_factor
from lmrl.training.update import Updater, minibatch_rows
from lmrl.training.update_settings import TrainSettings
from lmrl_ppo import PPO, PPOSettings
from lmrl_reinforce import Reinforce, ReinforceSettings

AGGREGATIONS = ["token_mean", "sequence_mean", "sequence_sum"]


def optimizer_of(name, aggregation="token_mean", **settings):
    common = {"epochs": 1, "minibatches": 1, "loss_aggregation": aggregation} | settings
    return PPO(PPOSettings(**common)) if name == "ppo" else Reinforce(ReinforceSettings(**common))


@pytest.mark.parametrize(
    ("name", "aggregation", "placement"),
    [*list(itertools.product(["ppo", "reinforce"], AGGREGATIONS, ["reward"])), ("ppo", "token_mean", "loss")],
)
def test_microbatches_change_no_gradient(toy, name, aggregation, placement):
    results = []
    for tokens in (10_000, 40, 1):
        world = toy(kl=KLSettings(beta=0.1, placement=placement), values=name == "ppo")
        before = world.parameters()
        world.updater(optimizer_of(name, aggregation), microbatch_tokens=tokens).learn(
            world.rollout(), beta=0.1, update=1, seed=0
        )
        results.append(world.parameters() - before)
    assert results[0].abs().max() > 1e-4
    for other in results[1:]:
        assert torch.allclose(other, results[0], atol=1e-6)


def test_the_first_step_starts_at_ratio_one(toy):
    world = toy()
    metrics = world.updater(optimizer_of("ppo")).learn(world.rollout(), beta=0.1, update=1, seed=0)
    assert metrics["optimizer/ratio"] == pytest.approx(1, abs=1e-4)
    assert metrics["optimizer/approximate_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["optimizer/clip_fraction"] == 0
    assert metrics["optimizer/steps"] == 1


def test_before_training_the_kl_to_the_reference_is_zero(toy):
    world = toy()
    scored = world.maker.sample(world.prompts(12), 0)
    log_ratio = scored.samples.sampler_logprobs - world.maker.reference_logprobs(scored.samples)
    assert log_ratio.abs().max() < 1e-5


def test_an_update_leaves_reference_and_rollout_alone(toy):
    world = toy()
    rollout = world.rollout()
    kept = copy.deepcopy(rollout)
    reference = [p.clone() for p in world.reference.parameters()]
    world.updater(optimizer_of("ppo", epochs=2, minibatches=3)).learn(rollout, beta=0.1, update=1, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(reference, world.reference.parameters(), strict=True))
    assert torch.equal(rollout.rewards, kept.rewards) and torch.equal(rollout.values, kept.values)
    assert torch.equal(rollout.sampler_logprobs, kept.sampler_logprobs)


def test_target_kl_leaves_out_the_step_and_the_rest(toy):
    world = toy()
    rollout = world.rollout()
    free = world.updater(optimizer_of("ppo", epochs=4, minibatches=2), learning_rate=0.3)
    assert free.learn(rollout, beta=0.1, update=1, seed=0)["optimizer/steps"] == 8
    world = toy()
    bound = world.updater(optimizer_of("ppo", epochs=4, minibatches=2, target_kl=1e-3), learning_rate=0.3)
    assert 1 <= bound.learn(rollout, beta=0.1, update=1, seed=0)["optimizer/steps"] < 8


def test_minibatches_cover_every_row_once_and_keep_groups_together(toy):
    rollout = toy().rollout(rows=12, group_size=3)
    generator = torch.Generator().manual_seed(0)
    parts = list(minibatch_rows(rollout, 2, generator))
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    groups = [set(rollout.group[part].tolist()) for part in parts]
    assert not groups[0] & groups[1]
    again = list(minibatch_rows(rollout, 2, generator))
    assert any(not torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def test_metrics_are_means_over_tokens_whatever_the_split(toy):
    results = []
    for tokens in (10_000, 1):
        world = toy()
        results.append(
            world.updater(optimizer_of("ppo"), microbatch_tokens=tokens, learning_rate=0.0).learn(
                world.rollout(), beta=0.1, update=1, seed=0
            )
        )
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, abs=1e-5), name


class Explodes(PolicyOptimizer):
    """Returns a loss that is not a number."""

    def advantages(self, rollout):
        return Advantages(rollout.rewards)

    def loss(self, policy, batch):
        return Loss(policy.evaluate(batch).logprobs * math.nan)


def test_a_loss_that_is_not_finite_stops_before_the_step(toy):
    world = toy()
    before = world.parameters()
    with pytest.raises(NonFiniteError, match="update 7, epoch 1, minibatch 1: the loss is nan"):
        world.updater(Explodes(OptimizerSettings())).learn(world.rollout(), beta=0.1, update=7, seed=0)
    assert torch.equal(world.parameters(), before)


def test_an_optimizer_without_its_two_methods_says_so(toy):
    with pytest.raises(TypeError, match="advantages"):
        PolicyOptimizer(OptimizerSettings()).advantages(None)
    with pytest.raises(TypeError, match="loss"):
        PolicyOptimizer(OptimizerSettings()).loss(None, None)
    with pytest.raises(ValueError, match="baseline"):
        PolicyOptimizer(OptimizerSettings()).load_state_dict({"baseline": 1.0})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2]),
    ],
)
def test_learning_rate(schedule, expected):
    settings = TrainSettings(updates=6, warmup_updates=2, schedule=schedule)
    assert [learning_rate_factor(u, settings) for u in range(1, 7)] == pytest.approx(expected)


def test_reinforce_subtracts_the_mean_of_past_batches(toy):
    world = toy(values=False)
    optimizer = optimizer_of("reinforce")
    first, second = world.rollout(seed=0), world.rollout(seed=1)
    optimizer.advantages(first)
    mean = float(first.rewards.sum(1).mean())
    assert optimizer.state_dict() == {"baseline": pytest.approx(mean)}
    advantages = optimizer.advantages(second).advantages
    assert torch.allclose(advantages[:, 0], second.rewards.sum(1) - mean, atol=1e-5)
    assert not advantages[~second.action_mask].any()
    other = optimizer_of("reinforce")
    other.load_state_dict(optimizer.state_dict())
    assert other.baseline == optimizer.baseline


def test_truncated_rows_bootstrap_and_terminated_ones_do_not(toy):
    world = toy()
    torch.nn.init.ones_(world.policy.value_head.bias)
    rollout = world.rollout()
    assert (rollout.bootstrap_values == 1).all()
    optimizer = optimizer_of("ppo", whiten_advantages=False, gae_lambda=1.0)
    ended = optimizer.advantages(rollout).extra["returns"]
    cut = optimizer.advantages(replace(rollout, truncated=~rollout.truncated)).extra["returns"]
    assert torch.allclose((cut - ended)[rollout.action_mask], torch.tensor(1.0))


class GroupMean(PolicyOptimizer):
    """Couples the rows of a prompt: each is compared with the mean of their current log-probabilities."""

    def advantages(self, rollout):
        return Advantages(rollout.rewards)

    def loss(self, policy, batch):
        total = policy.evaluate(batch).logprobs.sum(1)
        labels, place = batch.group.unique(return_inverse=True)
        sums = torch.zeros(len(labels)).index_add(0, place, total)
        counts = torch.zeros(len(labels)).index_add(0, place, torch.ones_like(total))
        return Loss((total - (sums / counts)[place]).square())


@pytest.mark.parametrize("whole", [True, False])
def test_a_loss_that_couples_a_group_sees_all_of_it(toy, whole):
    moved = []
    for tokens in (10_000, 1):
        world = toy()
        updater = world.updater(
            GroupMean(OptimizerSettings(loss_aggregation="sequence_mean")), microbatch_tokens=tokens
        )
        updater.needs = Needs(whole_groups=whole)
        before = world.parameters()
        updater.learn(world.rollout(rows=12, group_size=3), beta=0.0, update=1, seed=0)
        moved.append(world.parameters() - before)
    assert moved[0].abs().max() > 1e-3
    same = torch.allclose(moved[1], moved[0], atol=1e-5 * float(moved[0].abs().max()))
    assert same == whole, "cut apart, each row is its own mean"


def test_groups_are_cut_whole():
    group, lengths = torch.tensor([4, 4, 1, 1, 1, 9]), torch.tensor([2, 2, 3, 3, 3, 1])
    for budget, count in ((100, 1), (13, 2), (5, 2), (1, 3)):
        pieces = [piece.tolist() for piece in split_groups(group, lengths, budget)]
        assert sorted(row for piece in pieces for row in piece) == list(range(6))
        assert len(pieces) == count
        for piece in pieces:
            members = {int(group[row]) for row in piece}
            assert sorted(piece) == [row for row in range(6) if int(group[row]) in members], "no group is cut"
            assert len(members) == 1 or int(lengths[piece].sum()) <= budget


def test_a_policy_that_does_not_say_what_learns_needs_a_torch_optimizer():
    class Silent(LocalPolicy):
        def evaluate(self, batch):
            return None

    with pytest.raises(
        SettingsError, match=r"Silent does not say which parameters learn; define trainable\(\), or give"
    ):
        Updater(optimizer_of("ppo"), Silent())
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert Updater(optimizer_of("ppo"), Silent(), torch_optimizer=torch.optim.SGD([parameter], lr=1.0)).updates == 0
