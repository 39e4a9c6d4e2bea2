"""The minibatch of an optimizer with a step of its own: gradients, microbatches and the sums of their shares."""

import itertools

import pytest
import torch

from lmrl.algorithms.kl import KLSettings

AGGREGATIONS = ["token_mean", "sequence_mean", "sequence_sum"]


def updater_of(world, look, tokens=10_000, **settings):
    return world.watched(look, tokens, **settings)


def see(world, look, tokens=10_000, **settings):
    """Return what ``look`` returns of the one minibatch of an update."""
    found = []
    updater = updater_of(world, lambda minibatch: found.append(look(minibatch)), tokens, **settings)
    updater.learn(world.rollout(), beta=0.1, update=1, seed=0)
    return found[0]


@torch.no_grad()
def total_loss(minibatch):
    return float(sum(minibatch.loss(part) for part in minibatch.parts()))


@pytest.mark.parametrize(("aggregation", "placement"), list(itertools.product(AGGREGATIONS, ["reward", "loss"])))
def test_microbatches_change_no_sum(toy, aggregation, placement):
    @torch.no_grad()
    def look(minibatch):
        gradient = torch.cat([parameter.grad.reshape(-1) for parameter in minibatch.parameters])
        shares = [
            minibatch.aggregate(minibatch.policy.evaluate(part).logprobs ** 2, part) for part in minibatch.parts()
        ]
        assert len(shares) == len(minibatch)
        later = sum(1 for _ in minibatch.parts(start=1))
        assert later == len(minibatch) - 1
        return len(minibatch), gradient, sum(shares), total_loss(minibatch)

    kl = KLSettings(beta=0.1, placement=placement)
    (one, *whole), *others = (see(toy(kl=kl), look, tokens, loss_aggregation=aggregation) for tokens in (10_000, 40, 1))
    assert one == 1
    for count, *other in others:
        assert count > 1
        for mine, expected in zip(other, whole, strict=True):
            expected = torch.as_tensor(expected)
            assert torch.allclose(torch.as_tensor(mine), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_the_gradient_is_that_of_the_loss(toy, placement):
    """Also where the KL is in the loss: what a line search compares is what was differentiated."""
    kl = KLSettings(beta=5.0, placement=placement, estimator="k3" if placement == "loss" else "k1")

    def look(minibatch):
        gradients, step = [parameter.grad for parameter in minibatch.parameters], 1e-3
        norm = float(torch.cat([gradient.reshape(-1) for gradient in gradients]).norm())
        losses = []
        for distance in (step, -2 * step):
            torch._foreach_add_(
                [parameter.data for parameter in minibatch.parameters], gradients, alpha=distance / norm
            )
            losses.append(total_loss(minibatch))
        return (losses[0] - losses[1]) / (2 * step), norm

    slope, norm = see(toy(kl=kl), look)
    assert slope == pytest.approx(norm, rel=1e-2)


def test_parts_drop_their_evaluation_and_the_bytes_of_a_graph_are_counted(toy):
    def look(minibatch):
        for part in minibatch.parts():
            with minibatch.count_bytes() as count:
                minibatch.policy.evaluate(part).logprobs.sum()
            assert 0 < count() < minibatch.graph_bytes()
            break  # an abandoned loop too
        return list(minibatch.policy._known)

    assert see(toy(), look) == []


def test_adamw_moves_the_value_function_alone(toy):
    world = toy()
    updater = updater_of(world, lambda minibatch: {"seen": 1.0})
    model, head, trunk = (
        [p.detach().clone() for p in group["params"]] for group in updater.torch_optimizer.param_groups
    )
    rollout = world.rollout()
    for update in (1, 2):  # the head starts at zero, so the trunk's gradient is 0 in the first step
        metrics = updater.learn(rollout, beta=0.1, update=update, seed=0)
    groups = updater.torch_optimizer.param_groups
    assert metrics["optimizer/seen"] == 1
    assert all(torch.equal(old, new) for old, new in zip(model, groups[0]["params"], strict=True))
    for old, group in ((head, groups[1]), (trunk, groups[2])):
        assert any(not torch.equal(before, after) for before, after in zip(old, group["params"], strict=True))


def test_a_step_knows_its_pass(toy):
    passes = []
    updater = updater_of(toy(), lambda minibatch: passes.append(minibatch.epoch), epochs=2, minibatches=2)
    updater.learn(toy().rollout(), beta=0.1, update=1, seed=0)
    assert passes == [0, 0, 1, 1]
