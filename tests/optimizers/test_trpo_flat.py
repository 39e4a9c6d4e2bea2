"""TRPO's flat minibatch: means and Hessians of all microbatches, vectors of parameters, conjugate gradients."""

import importlib.util
import itertools
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmrl.algorithms import ops
from lmrl.algorithms.kl import KLSettings
from lmrl.models.text_policy import TextPolicy
from lmrl.training.memory import GIB
from lmrl_trpo.flat import FlatMinibatch, conjugate_gradient

AGGREGATIONS = ["token_mean", "sequence_mean", "sequence_sum"]


@pytest.fixture
def toy(tiny_folder):
    spec = importlib.util.spec_from_file_location("stages", Path(__file__).parents[1] / "stages" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda **kwargs: module.Toy(tiny_folder, **kwargs)


def updater_of(world, look, tokens=10_000, kl=None, **settings):
    world.kl = kl or world.kl
    return world.watched(lambda minibatch: look(FlatMinibatch(minibatch)), tokens, **settings)


def see(world, look, tokens=10_000, kl=None, **settings):
    """Return what ``look`` returns of the one minibatch of an update."""
    found = []
    updater = updater_of(world, lambda minibatch: found.append(look(minibatch)), tokens, kl, **settings)
    updater.learn(world.rollout(), beta=0.1, update=1, seed=0)
    return found[0]


def curved(policy, batch):
    """Something with a Hessian everywhere, and 0 outside the mask."""
    return policy.evaluate(batch).logprobs ** 2 * torch.arange(1, batch.action_mask.shape[1] + 1)


def fixed_kl(policy, batch):
    logprobs = policy.evaluate(batch).log_distributions
    return ops.scatter_rows(ops.kl_divergence(logprobs.detach(), logprobs), batch.action_mask)


def direction(minibatch, seed=0):
    vector = minibatch.parameters()
    return torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))


def gradient_of_mean(minibatch, losses):
    shares = sum(minibatch._share(losses, part) for part in minibatch.minibatch.parts())
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(shares, minibatch.trained)])


def test_hessian_products_equal_finite_differences(toy):
    def look(minibatch):
        vector, start, step = direction(minibatch), minibatch.parameters(), 3e-3
        vector = vector * (minibatch.gradient != 0)  # an embedding's padding row is no parameter
        vector = vector / vector.norm()
        minibatch.assign(start + step * vector)
        ahead = gradient_of_mean(minibatch, curved)
        minibatch.assign(start - step * vector)
        behind = gradient_of_mean(minibatch, curved)
        minibatch.assign(start)
        return minibatch.hessian(curved)(vector), (ahead - behind) / (2 * step)

    product, difference = see(toy(), look, tokens=60)
    assert (product - difference).norm() < 1e-3 * product.norm()


def test_the_hessian_of_the_kl_is_the_fisher_matrix(toy):
    """F = E over states of sum_a p_a grad log p_a grad log p_a^T, made entry by entry."""
    world = toy()

    def look(minibatch):
        vector, states = direction(minibatch), minibatch.minibatch.batch.action_mask.sum()
        evaluation = world_policy.evaluate(minibatch.minibatch.batch)
        expected = torch.zeros_like(vector)
        for row in evaluation.log_distributions:
            for logprob in row:
                grads = torch.autograd.grad(logprob, minibatch.trained, retain_graph=True)
                score = torch.cat([g.reshape(-1) for g in grads])
                expected += logprob.detach().exp() * score * (score @ vector) / states
        world_policy.forget()
        return minibatch.hessian(fixed_kl)(vector), expected, minibatch.mean(fixed_kl)

    updater = updater_of(world, lambda minibatch: found.append(look(minibatch)))
    world_policy, found = updater.policy, []
    updater.learn(world.rollout(rows=4), beta=0.1, update=1, seed=0)
    [(product, expected, mean)] = found
    assert mean == pytest.approx(0, abs=1e-6)
    assert torch.allclose(product, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("aggregation", "placement"), list(itertools.product(AGGREGATIONS, ["reward", "loss"])))
def test_microbatches_change_nothing_that_is_seen(toy, aggregation, placement):
    def look(minibatch):
        vector = direction(minibatch)
        numbers = minibatch.mean(curved), minibatch.loss()
        product = minibatch.hessian(curved)
        return minibatch.gradient, product(vector), product(direction(minibatch, 1)), torch.tensor(numbers)

    kl = KLSettings(beta=0.1, placement=placement)
    whole, *others = (see(toy(kl=kl), look, tokens, loss_aggregation=aggregation, kl=kl) for tokens in (10_000, 40, 1))
    for other in others:
        for mine, expected in zip(other, whole, strict=True):
            assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_graphs_that_fit_are_kept_and_change_no_product(toy, monkeypatch):
    """A microbatch that is kept is evaluated once for all products, another one anew for each."""
    evaluated, sizes = [], []
    evaluate = TextPolicy.evaluate
    monkeypatch.setattr(TextPolicy, "evaluate", lambda self, batch: evaluated.append(1) or evaluate(self, batch))

    def look(minibatch):
        with minibatch.minibatch.count_bytes() as count:
            first = next(minibatch._gradients(curved))
        sizes.append(count())
        del first
        product = minibatch.hessian(curved)
        evaluated.clear()
        return [product(direction(minibatch, seed)) for seed in range(3)], len(evaluated), len(minibatch.minibatch)

    def limited(bytes_of_graphs):
        found, world = [], toy()
        updater = updater_of(world, lambda minibatch: found.append(look(minibatch)), tokens=40)
        updater.settings = replace(updater.settings, microbatch_memory=bytes_of_graphs / GIB)
        updater.learn(world.rollout(), beta=0.1, update=1, seed=0)
        return found[0]

    expected, count, microbatches = limited(0)  # a share of all that is free
    assert (count, microbatches) == (0, 3)
    for graphs in (0, 1):
        products, count, _ = limited((graphs + 0.5) * sizes[0])
        assert count == 3 * (microbatches - graphs)
        assert all(torch.equal(*pair) for pair in zip(products, expected, strict=True))


def test_graphs_that_were_kept_are_let_go(toy):
    """What counts their bytes must not hold them, nor close a circle of a node and what it saved."""
    outputs = []

    def exponential(policy, batch):
        output = policy.evaluate(batch).logprobs.exp()  # a node that saves its own output
        outputs.append(weakref.ref(output))
        return output

    def look(minibatch):
        minibatch.hessian(exponential)(direction(minibatch))

    see(toy(), look, tokens=40)
    assert len(outputs) == 3 and all(output() is None for output in outputs)


@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_the_gradient_is_that_of_the_loss(toy, placement):
    """Also where the KL is in the loss: what a line search compares is what was differentiated."""
    kl = KLSettings(beta=5.0, placement=placement, estimator="k3" if placement == "loss" else "k1")

    def look(minibatch):
        start, step = minibatch.parameters(), 1e-3
        unit = minibatch.gradient / minibatch.gradient.norm()
        minibatch.assign(start + step * unit)
        ahead = minibatch.loss()
        minibatch.assign(start - step * unit)
        behind = minibatch.loss()
        minibatch.assign(start)
        return (ahead - behind) / (2 * step), float(minibatch.gradient.norm())

    slope, norm = see(toy(kl=kl), look, kl=kl)
    assert slope == pytest.approx(norm, rel=1e-2)


def test_parameters_come_back_bit_for_bit_and_the_value_function_is_not_among_them(toy):
    world = toy()

    def look(minibatch):
        start = minibatch.parameters()
        assert len(start) == sum(p.numel() for p in world.language_model.model.parameters())
        minibatch.assign(start * 1.1)
        with minibatch.at(start):
            assert torch.equal(minibatch.parameters(), start)
        assert torch.equal(minibatch.parameters(), start * 1.1)
        minibatch.assign(start)
        return start

    start = see(world, look)
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in world.language_model.model.parameters()]), start)


def test_constants_have_no_curvature(toy):
    def look(minibatch):
        assert not minibatch.hessian(lambda policy, batch: 0 * policy.evaluate(batch).logprobs)(
            minibatch.gradient
        ).any()

    see(toy(), look)


def test_conjugate_gradient_solves():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, target = root @ root.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)
    solution = conjugate_gradient(lambda x: matrix @ x, target, 6)
    assert torch.allclose(solution, torch.linalg.solve(matrix, target))
    assert not torch.allclose(conjugate_gradient(lambda x: matrix @ x, target, 2), solution)


def test_conjugate_gradient_survives_what_is_not_positive():
    target = torch.tensor([1.0, 2.0])
    assert not conjugate_gradient(lambda x: 0 * x, target, 5).any()
    assert not conjugate_gradient(lambda x: torch.eye(2) @ x, 0 * target, 5).any()
