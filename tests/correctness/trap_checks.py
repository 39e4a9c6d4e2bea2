"""Checks that a trap's test makes of the library as it is, and a planted defect must fail."""

from __future__ import annotations

import torch

from lmrl.algorithms import kl, ops
from lmrl.algorithms.kl import KLController, KLSettings
from lmrl.algorithms.optimizer import Loss, OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.rollout import Advantages
from lmrl.algorithms.sequences import Sequences
from lmrl.engines import SamplingSpec
from lmrl.models import PolicyModel, text_policy
from lmrl.models.text_policy import reference_spec
from lmrl.training import update as updates


def check_03(world):
    """The score lands on the last action once, and everything else is the penalty."""
    scored = world.maker.sample(world.prompts(12), 0)
    samples = scored.samples
    reference = world.maker.reference_logprobs(samples) - 0.3 * samples.action_mask
    rewards = world.maker.complete(scored, reference, 0.5).rewards
    penalty = -0.5 * (samples.sampler_logprobs - reference)
    assert torch.allclose((rewards - penalty).sum(1), scored.scores, atol=1e-5)
    places = ((rewards - penalty).abs() > 1e-5).nonzero().tolist()
    last = samples.inputs.action_counts - 1
    assert all(column == last[row] for row, column in places)


def check_04(model):
    """Log-probabilities against the table they come from."""
    inputs = Sequences.of_pairs([([2, 3], [1, 5]), ([4], [0, 2, 3])])
    found = text_policy.score_logprobs(PolicyModel(model), inputs, SamplingSpec(), 100)
    table = model.table.detach().log_softmax(-1)
    expected = torch.tensor([[table[3, 1], table[1, 5], 0.0], [table[4, 0], table[0, 2], table[2, 3]]])
    assert torch.allclose(found, expected, atol=1e-6)


def wider(inputs, extra, value=0):
    """Return sequences with ``extra`` further columns of padding."""
    import dataclasses

    pad = torch.nn.functional.pad
    return dataclasses.replace(
        inputs, ids=pad(inputs.ids, (0, extra), value=value), sampled=pad(inputs.sampled, (0, extra))
    )


def check_05(world, extra):
    """Log-probabilities and values of rows alone, together, in another order and with more padding."""
    torch.nn.init.normal_(world.policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    inputs = world.rollout(rows=9).inputs
    wide = wider(inputs, extra)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    width = inputs.action_ids.shape[1]
    for score in (
        lambda i, budget: text_policy.score_logprobs(world.policy, i, world.spec, budget),
        lambda i, budget: text_policy.score_values(world.policy, i, budget)[0],
    ):
        alone = torch.cat([score(inputs.select(torch.tensor([row])), 100) for row in range(9)])
        assert torch.allclose(score(wide, 1000)[:, :width], alone, atol=1e-5)
        assert torch.allclose(score(inputs.select(order), 40), alone[order], atol=1e-5)


def check_10(world, temperature):
    """What was recorded as it was drawn is what scoring says, for the policy and for its twin, the reference."""
    rollout = world.rollout(rows=24)
    assert world.spec.temperature == temperature
    again = text_policy.score_logprobs(world.policy, rollout.inputs, world.spec, 100)
    assert torch.allclose(again, rollout.sampler_logprobs, atol=1e-4)
    reference = text_policy.score_logprobs(world.reference, rollout.inputs, reference_spec(world.spec), 100)
    assert torch.allclose(reference, rollout.sampler_logprobs, atol=1e-4)


def check_13():
    """Minus beta times the log-ratio, on response tokens only."""
    logprobs, reference = torch.tensor([[-1.0, -2.0, 7.0]]), torch.tensor([[-1.5, -1.0, 3.0]])
    mask = torch.tensor([[True, True, False]])
    rewards = kl.shape_rewards(torch.tensor([0.0]), logprobs, reference, mask, KLSettings(beta=0.5), 0.5)
    assert torch.allclose(rewards, torch.tensor([[-0.25, 0.5, 0.0]]))


def check_15():
    """Unbiased where they should be, and never negative."""
    pi, reference = torch.tensor([0.9, 0.09, 0.01]).double(), torch.tensor([0.01, 0.19, 0.8]).double()
    exact = (pi * (pi / reference).log()).sum()
    columns = {name: ops.kl_estimate(pi.log(), reference.log(), name) for name in ("k1", "k2", "k3")}
    assert torch.isclose((pi * columns["k1"]).sum(), exact)
    assert torch.isclose((pi * columns["k3"]).sum(), exact)
    assert not torch.isclose((pi * columns["k2"]).sum(), exact)
    assert (columns["k3"] >= 0).all()


def enumerate_two(parameters, reference, loss_of):
    """Return the gradient of a loss's expectation over the four responses of two binary tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for first in range(2):
        for second in range(2):
            rows = [parameters[0].log_softmax(-1)[first], parameters[1 + first].log_softmax(-1)[second]]
            fixed = [reference[0].log_softmax(-1)[first], reference[1 + first].log_softmax(-1)[second]]
            now, other = torch.stack(rows)[None], torch.stack(fixed)[None]
            total = total + loss_of(now, other, now.sum().exp())
    return torch.autograd.grad(total, parameters)[0]


def check_16():
    """k1 in the loss: as it stands it pushes nothing, in its score-function form it is the KL's own gradient."""
    generator = torch.Generator().manual_seed(1)
    parameters = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    settings = KLSettings(estimator="k1", placement="loss")
    exact = enumerate_two(parameters, reference, lambda p, q, weight: weight * (p - q).sum())
    naive = enumerate_two(parameters, reference, lambda p, q, weight: weight.detach() * (p - q).sum())
    ours = enumerate_two(
        parameters, reference, lambda p, q, w: w.detach() * kl.kl_losses(p, p.detach(), q, mask, settings).sum()
    )
    shaped = enumerate_two(
        parameters,
        reference,
        lambda p, q, w: w.detach() * (p * ops.returns_to_go((p - q).detach(), mask)).sum(),
    )
    assert naive.abs().max() < 1e-12
    assert torch.allclose(ours, exact) and torch.allclose(shaped, exact)


def check_18():
    """Proportional control by the KL of a sequence: error 0.2 at most, times episodes over horizon."""
    controller = KLController(KLSettings(beta=0.1, controller="adaptive", target=6.0, horizon=100))
    controller.adapt(6.6, 50)
    assert abs(controller.beta - 0.1 * (1 + 0.1 * 0.5)) < 1e-12
    controller.adapt(600.0, 50)
    assert abs(controller.beta - 0.105 * (1 + 0.2 * 0.5)) < 1e-12


def check_20():
    """Terminated rows bootstrap nothing, truncated ones the value behind their last action."""
    rewards, values = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.5, 0.25], [0.5, 0.25]])
    found = ops.generalized_advantages(
        rewards,
        values,
        torch.tensor([10.0, 10.0]),
        torch.ones(2, 2, dtype=torch.bool),
        torch.tensor([False, True]),
        lambda_=1.0,
    )
    assert torch.allclose(found, torch.tensor([[0.5, 0.75], [10.5, 10.75]]))


def check_24():
    """Nothing in degenerate shards is NaN, and rewards keep their mean."""
    some = torch.tensor([[True, True, False]])
    for values in ([[3.0, 3.0, 9.0]], [[0.0, 0.0, float("nan")]]):
        assert torch.equal(ops.masked_whiten(torch.tensor(values), some), torch.zeros(1, 3))
    one = torch.tensor([[True, False, False]])
    assert torch.equal(ops.masked_whiten(torch.tensor([[5.0, 1.0, 2.0]]), one), torch.zeros(1, 3))
    assert torch.equal(ops.masked_whiten(torch.tensor([[5.0, 1.0, 2.0]]), one & ~one), torch.zeros(1, 3))
    x = torch.tensor([[1.0, 3.0, 77.0]])
    assert torch.allclose(ops.masked_whiten(x, some), torch.tensor([[-1.0, 1.0, 0.0]]), atol=1e-4)
    assert abs(float(ops.masked_mean(ops.masked_whiten(x, some, shift_mean=False), some)) - 2) < 1e-4


def check_27():
    """The clipped value error by hand: how far a value moved is measured from the old one."""
    values, old, returns = torch.tensor([2.0, 2.0]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, -1.0])
    found = ops.clipped_value_loss(values, old, returns, 0.5)
    assert torch.allclose(found, torch.tensor([0.5 * 1.5**2, 0.5 * 3.0**2]))


class Plain(PolicyOptimizer):
    """-advantage log pi, with the advantages that a rollout's scores are."""

    def advantages(self, rollout):
        return Advantages(rollout.scores[:, None] * rollout.action_mask)

    def loss(self, policy, batch):
        losses = -batch.advantages * policy.evaluate(batch).logprobs
        return Loss(losses, {"policy_loss": losses})


def change_of(make_world, aggregation, **train):
    """Return how plain SGD moves the parameters in one update, and its metrics."""
    world = make_world(values=False)
    rollout = world.rollout(rows=12, group_size=2)
    before = world.parameters()
    updater = world.updater(Plain(OptimizerSettings(loss_aggregation=aggregation)), **train)
    metrics = updater.learn(rollout, beta=0.1, update=1, seed=0)
    return world.parameters() - before, metrics


def check_28(make_world, aggregation):
    """One microbatch or many, the step is the same."""
    whole, metrics = change_of(make_world, aggregation, microbatch_tokens=10_000)
    pieces, again = change_of(make_world, aggregation, microbatch_tokens=1)
    assert whole.abs().max() > 1e-4
    assert torch.allclose(whole, pieces, atol=2e-6)
    for name, value in metrics.items():
        assert abs(again[name] - value) < 1e-4, name


def check_29():
    """A row without actions changes neither the sum nor the count."""
    losses, mask = torch.tensor([[1.0, 3.0], [50.0, 70.0]]), torch.tensor([[True, True], [False, False]])
    for aggregation, expected in (("token_mean", 2.0), ("sequence_mean", 2.0), ("sequence_sum", 4.0)):
        counts = mask.sum(), mask.any(1).sum()
        assert float(ops.aggregate_losses(losses, mask, aggregation, *counts)) == expected
    assert float(ops.aggregate_losses(torch.tensor([5.0, 9.0]), mask, "token_mean", 2, 1)) == 5.0


def check_30(low=0.2, high=0.3):
    """The gradient is cut exactly where the clipped term is the smaller one; the bounds are not swapped."""
    logprobs = torch.log(torch.tensor([1.25, 1.35, 0.75, 0.65, 1.35, 0.65])).requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
    losses, _ = ops.clipped_surrogate(logprobs, torch.zeros(6), advantages, low, high)
    losses.sum().backward()
    assert [bool(g == 0) for g in logprobs.grad] == [False, True, True, True, False, False]


def check_14(make_world):
    """Junk outside the mask, and more of it, moves no statistic and no parameter."""
    changes, logged = [], []
    for extra in (0, 4):
        world = make_world(values=False)
        rollout = world.rollout(rows=12)
        if extra:
            rollout = with_junk(rollout, extra)
        before = world.parameters()
        updater = world.updater(Plain(OptimizerSettings(loss_aggregation="token_mean")))
        logged.append(updater.learn(rollout, beta=0.1, update=1, seed=0))
        changes.append(world.parameters() - before)
    assert torch.allclose(changes[0], changes[1], atol=1e-6)
    assert all(abs(logged[0][name] - logged[1][name]) < 1e-5 for name in logged[0])


def with_junk(rollout, extra):
    """Return a rollout with ``extra`` further columns of junk outside the mask."""
    import dataclasses

    inputs, pad = rollout.inputs, torch.nn.functional.pad
    wide = wider(inputs, extra, value=7)
    mask = pad(rollout.action_mask, (0, extra))
    columns = {
        name: pad(getattr(rollout, name), (0, extra)).masked_fill(~mask, 1000)
        for name in ("sampler_logprobs", "proximal_logprobs", "rewards", "policy_version", "turn")
    }
    declared = {
        name: pad(column, (0, extra)).masked_fill(~mask, 1e3) if column.ndim == 2 else column
        for name, column in rollout.declared.items()
    }
    return dataclasses.replace(rollout, inputs=wide, action_mask=mask, declared=declared, loss_mask=None, **columns)


def check_26(rollout):
    """A minibatch holds all samples of a prompt or none."""
    generator = torch.Generator().manual_seed(0)
    seen = []
    for rows in updates.minibatch_rows(rollout, 3, generator):
        groups = rollout.group[rows].unique()
        assert sorted(rows.tolist()) == torch.isin(rollout.group, groups).nonzero().squeeze(1).tolist()
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(rollout)))
