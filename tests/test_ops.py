"""The column maths against numbers worked out by hand, and against properties that hold for all inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.algorithms import ops
from lmrl.algorithms.kl import KLController, KLSettings, kl_losses, shape_rewards, shaping_term
from lmrl.errors import SettingsError


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_token_logprobs_are_log_softmax_entries():
    logits = rows([0.0, math.log(3.0)], [math.log(2.0), 0.0])
    result = ops.token_logprobs(logits, torch.tensor([1, 1]))
    assert torch.allclose(result.exp(), rows(0.75, 1 / 3))


def test_entropy_of_uniform_and_of_a_restricted_support():
    uniform = torch.full((1, 4), -math.log(4.0))
    half = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf, -math.inf]])
    assert ops.entropy(uniform).item() == pytest.approx(math.log(4))
    assert ops.entropy(half).item() == pytest.approx(math.log(2))


def test_masked_mean_ignores_what_stands_outside_even_nan():
    x = rows([1.0, 3.0, math.nan])
    mask = torch.tensor([[True, True, False]])
    assert ops.masked_mean(x, mask).item() == 2.0


def test_whitening_by_hand_and_on_degenerate_input():
    mask = torch.tensor([[True, True, False]])
    assert torch.allclose(ops.masked_whiten(rows([1.0, 3.0, 99.0]), mask), rows([-1.0, 1.0, 0.0]), atol=1e-6)
    kept = ops.masked_whiten(rows([1.0, 3.0, 99.0]), mask, shift_mean=False)
    assert ops.masked_mean(kept, mask).item() == pytest.approx(2.0)
    one = torch.tensor([[True, False, False]])
    assert torch.equal(ops.masked_whiten(rows([5.0, 0.0, 0.0]), one), rows([0.0, 0.0, 0.0]))
    assert torch.equal(ops.masked_whiten(rows([5.0, 5.0, 0.0]), mask), rows([0.0, 0.0, 0.0]))
    assert torch.isfinite(ops.masked_whiten(rows([5.0, 5.0, 0.0]), torch.zeros(1, 3, dtype=torch.bool))).all()


def test_returns_to_go_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    assert torch.equal(ops.returns_to_go(rows([1.0, 2.0, 3.0, 0.0]), mask), rows([6.0, 5.0, 3.0, 0.0]))
    assert torch.equal(ops.returns_to_go(rows([1.0, 2.0, 4.0, 0.0]), mask, gamma=0.5), rows([3.0, 4.0, 4.0, 0.0]))


REWARDS, VALUES = rows([0.0, 0.0, 1.0]), rows([0.5, 0.25, 0.75])
ALL = torch.ones(1, 3, dtype=torch.bool)


def gae(truncated=False, bootstrap=10.0, **kwargs):
    return ops.generalized_advantages(REWARDS, VALUES, rows(bootstrap), ALL, torch.tensor([truncated]), **kwargs)


def test_gae_by_hand():
    # deltas: 0.25 - 0.5 = -0.25; 0.75 - 0.25 = 0.5; 1 - 0.75 = 0.25
    assert torch.allclose(gae(lambda_=0.0), rows([-0.25, 0.5, 0.25]))
    assert torch.allclose(gae(lambda_=1.0), rows([0.5, 0.75, 0.25]))
    assert torch.allclose(gae(lambda_=0.5), rows([-0.25 + 0.5 * 0.625, 0.625, 0.25]))


def test_gae_bootstraps_truncated_rows_only():
    assert torch.allclose(gae(lambda_=1.0, truncated=False), rows([0.5, 0.75, 0.25]))
    assert torch.allclose(gae(lambda_=1.0, truncated=True), rows([10.5, 10.75, 10.25]))


def test_lambda_one_is_return_minus_value():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    values = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.ones(5, 7, dtype=torch.bool)
    zeros = torch.zeros(5, dtype=torch.float64)
    result = ops.generalized_advantages(rewards, values, zeros, mask, zeros.bool(), lambda_=1.0)
    assert torch.allclose(result, ops.returns_to_go(rewards, mask) - values)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.lists(st.booleans(), min_size=1, max_size=8), st.booleans())
def test_tokens_the_policy_did_not_sample_are_transparent(seed, pattern, truncated):
    """Deleting unsampled columns changes no advantage of the sampled ones."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([pattern])
    rewards = torch.randn(1, len(pattern), generator=generator, dtype=torch.float64).masked_fill(~mask, 0)
    values = torch.randn(1, len(pattern), generator=generator, dtype=torch.float64)
    bootstrap = torch.randn(1, generator=generator, dtype=torch.float64)
    flag = torch.tensor([truncated])
    full = ops.generalized_advantages(rewards, values, bootstrap, mask, flag, 0.9, 0.8)
    if not any(pattern):
        assert not full.any()
        return
    short = ops.generalized_advantages(
        rewards[:, mask[0]], values[:, mask[0]], bootstrap, mask[:, mask[0]], flag, 0.9, 0.8
    )
    assert torch.allclose(full[:, mask[0]], short)
    assert not full[:, ~mask[0]].any()


def test_kl_estimators_by_hand_and_their_bias_by_enumeration():
    pi, reference = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    exact = (pi * (pi / reference).log()).sum()
    expectation = {k: (pi * ops.kl_estimate(pi.log(), reference.log(), k)).sum() for k in ("k1", "k2", "k3")}
    assert torch.isclose(expectation["k1"], exact)
    assert torch.isclose(expectation["k3"], exact)
    assert not torch.isclose(expectation["k2"], exact)
    assert (ops.kl_estimate(pi.log(), reference.log(), "k3") >= 0).all()
    assert ops.kl_estimate(rows(-1.0), rows(-3.0), "k2").item() == 2.0
    with pytest.raises(ValueError, match="k4"):
        ops.kl_estimate(rows(0.0), rows(0.0), "k4")


def enumerated(parameters, reference, loss_of):
    """Gradient of the expected loss over all two-token responses of an autoregressive softmax policy."""
    total = 0
    for first in range(2):
        for second in range(2):
            logprobs = torch.stack(
                [parameters[0].log_softmax(-1)[first], parameters[1 + first].log_softmax(-1)[second]]
            )[None]
            log_reference = torch.stack(
                [reference[0].log_softmax(-1)[first], reference[1 + first].log_softmax(-1)[second]]
            )[None]
            total = total + logprobs.sum().exp().detach() * loss_of(logprobs, log_reference)
    return torch.autograd.grad(total, parameters)[0]


def exact_kl_gradient(parameters, reference):
    total = 0
    for first in range(2):
        for second in range(2):
            logp = parameters[0].log_softmax(-1)[first] + parameters[1 + first].log_softmax(-1)[second]
            logq = reference[0].log_softmax(-1)[first] + reference[1 + first].log_softmax(-1)[second]
            total = total + logp.exp() * (logp - logq)
    return torch.autograd.grad(total, parameters)[0]


def test_k1_in_the_loss_as_it_stands_has_no_gradient_and_ours_has_the_exact_one():
    generator = torch.Generator().manual_seed(1)
    parameters = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    naive = enumerated(parameters, reference, lambda p, q: ops.kl_estimate(p, q, "k1").sum())
    assert naive.abs().max() < 1e-12
    ours = enumerated(
        parameters,
        reference,
        lambda p, q: kl_losses(p, p.detach(), q, mask, KLSettings(estimator="k1", placement="loss")).sum(),
    )
    assert torch.allclose(ours, exact_kl_gradient(parameters, reference))


def test_clipped_surrogate_by_hand_and_its_zero_gradients():
    ratio = rows([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = rows([1.0, -1.0, 1.0, -1.0, 2.0])
    logprobs = ratio.log().requires_grad_()
    loss, clipped = ops.clipped_surrogate(logprobs, torch.zeros_like(ratio), advantages, 0.2, 0.3)
    assert torch.allclose(loss, rows([-1.3, 1.5, -0.5, 0.8, -2.2]))
    assert clipped.tolist() == [[True, False, False, True, False]]
    gradient = torch.autograd.grad(loss.sum(), logprobs)[0]
    assert torch.allclose(gradient, rows([0.0, 1.5, -0.5, 0.0, -2.2]))


def test_dual_clip_by_hand_bounds_bad_actions_only():
    ratio, advantages = rows([5.0, 5.0, 2.0, 0.5]), rows([-2.0, 2.0, -2.0, -2.0])
    logprobs = ratio.log().requires_grad_()
    loss, clipped = ops.clipped_surrogate(logprobs, torch.zeros_like(ratio), advantages, 0.2, 0.2, dual_clip=3.0)
    assert torch.allclose(loss, rows([6.0, -2.4, 4.0, 1.6]))
    assert clipped.tolist() == [[True, True, False, True]]
    assert torch.allclose(torch.autograd.grad(loss.sum(), logprobs)[0], rows([0.0, 0.0, 4.0, 0.0]))


# Two groups of three and two rows, with labels and places as they come.
GROUP, SCORES = torch.tensor([40, -3, 40, -3, 40]), rows(3.0, 4.0, 6.0, 2.0, 0.0)


def test_group_sums_means_and_spread_by_hand():
    sums, counts = ops.group_sums(SCORES, GROUP)
    assert sums.tolist() == [9, 6, 9, 6, 9] and counts.tolist() == [3, 2, 3, 2, 3]
    assert ops.group_means(SCORES, GROUP).tolist() == [3, 3, 3, 3, 3]
    assert ops.group_spread(SCORES, GROUP).tolist() == [6, 2, 6, 2, 6]
    assert ops.group_spread(rows(0.1, 0.1, -1.0), torch.tensor([1, 1, 0])).tolist() == [0, 0, 0]


def test_leave_one_out_means_by_hand():
    assert ops.leave_one_out_means(SCORES, GROUP).tolist() == [3, 2, 1.5, 4, 4.5]
    with pytest.raises(ValueError, match="group of one"):
        ops.leave_one_out_means(SCORES, torch.tensor([0, 0, 0, 0, 1]))


def test_rows_left_out_of_a_group_count_among_nobodys_others():
    group = torch.tensor([0, 0, 0, 1, 1])
    left_out = torch.tensor([False, True, False, True, False])
    found = ops.leave_one_out_means(torch.tensor([1.0, 50.0, 3.0, 70.0, 5.0]), group, left_out)
    assert found.tolist() == [3, 50, 1, 70, 5], "who is left out, or alone, is compared with itself"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=12), st.randoms())
def test_group_baselines_follow_the_rows_wherever_they_stand(pairs, random):
    pairs = pairs + pairs  # no group of one
    shuffled = random.sample(range(len(pairs)), len(pairs))
    scores, labels = rows(*[score for _, score in pairs]), torch.tensor([1000 - 7 * label for label, _ in pairs])
    for baseline in (ops.group_means, ops.leave_one_out_means, ops.group_spread):
        moved = baseline(scores[shuffled], labels[shuffled])
        assert torch.allclose(moved, baseline(scores, labels)[shuffled])
    counts = ops.group_sums(scores, labels)[1]
    centred = scores - ops.group_means(scores, labels)
    assert torch.allclose(scores - ops.leave_one_out_means(scores, labels), centred * counts / (counts - 1))


def test_rows_that_are_split_off_are_alone():
    apart = torch.tensor([False, True, False, False, True])
    found = ops.split_off(GROUP, apart)
    assert found[0] == found[2] and len(found.unique()) == 4
    assert ops.group_sums(SCORES, found)[1].tolist() == [2, 1, 2, 1, 1]
    untouched = ops.split_off(torch.tensor([2**63 - 1, -(2**63), 2**63 - 1]), torch.zeros(3, dtype=torch.bool))
    assert untouched[0] == untouched[2] != untouched[1]


def test_group_normalisation_by_hand():
    # Deviations from the means 3 and 3: (0, 3, -3) with the sample deviation 3, and (1, -1) with sqrt(2).
    found = ops.group_normalise(SCORES, GROUP, epsilon=0.0)
    assert torch.allclose(found, rows(0.0, 1 / math.sqrt(2), 1.0, -1 / math.sqrt(2), -1.0))
    assert ops.group_normalise(SCORES, GROUP, divide=False).tolist() == [0, 1, 3, -1, -3]


def test_group_normalisation_of_a_group_without_spread_is_exactly_zero():
    tenths = torch.full((3,), 0.1)  # whose mean in float32 need not be 0.1
    assert ops.group_normalise(torch.cat([tenths, rows(7.0).float()]), torch.tensor([1, 1, 1, 2])).tolist() == [0] * 4


def test_groups_of_equal_scores_are_centred_and_not_divided():
    """A KL shaping of the size of rounding errors must not come out as large as a reward."""
    returns, scores = rows(1.0 + 1e-6, 1.0 - 1e-6, 3.0, 1.0), rows(1.0, 1.0, 3.0, 1.0)
    found = ops.group_normalise(returns, torch.tensor([0, 0, 1, 1]), scores=scores, epsilon=0.0)
    assert torch.allclose(found, rows(1e-6, -1e-6, math.sqrt(0.5), -math.sqrt(0.5)), atol=1e-9)


def test_beta_normalisation_by_hand():
    # p is 1/4 and 3/4: mean 1/2, sample variance 1/8, so a = b = (1/4 / (1/8) - 1) / 2 = 1/2, and both parameters are
    # 7/6, where the density at 1/4 and at 3/4 is (3/16)^(1/6) / B(7/6, 7/6).
    group, scores = torch.tensor([5, 9] * 4), rows(1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    density = (3 / 16) ** (1 / 6) * math.gamma(7 / 3) / math.gamma(7 / 6) ** 2
    centred = rows(0.75, 0.25, -0.25, 0.25, -0.25, 0.25, -0.25, -0.75)
    assert torch.allclose(ops.beta_normalise(scores, group, scores), centred / density)
    returns = scores - 0.1 * torch.arange(8)  # a KL shaping is centred with the score, and weighs as much
    assert torch.allclose(
        ops.beta_normalise(returns, group, scores), (returns - ops.group_means(returns, group)) / density
    )


def test_beta_normalisation_keeps_the_scale_where_no_density_says_otherwise():
    scores, group = rows(1.0, 1.0, 0.0, 0.0, 1.0, 0.0), torch.tensor([0, 0, 1, 1, 2, 2])
    shaped = scores + rows(0.01, -0.01, 0.02, -0.02, 0.0, 0.0)
    found = ops.beta_normalise(shaped, group, scores)  # p is 1, 0 and 1/2: a and b are below 0, the density is 1
    assert torch.allclose(found, rows(0.01, -0.01, 0.02, -0.02, 0.5, -0.5))
    alike = ops.beta_normalise(rows(1.0, 0.0, 0.0, 1.0), torch.tensor([0, 0, 1, 1]), rows(1.0, 0.0, 0.0, 1.0))
    assert alike.tolist() == [0.5, -0.5, -0.5, 0.5], "one p says nothing of its distribution"
    with pytest.raises(SettingsError, match=r"a score of 0\.5, but BNPO is defined for scores of 0 and 1"):
        ops.beta_normalise(SCORES, GROUP, rows(1.0, 0.0, 0.5, 1.0, 1.0))


def test_sequence_log_ratios_are_means_over_actions():
    now, before = rows([0.3, 0.1, 9.0], [-1.0, -2.0, -4.0], [5.0, 5.0, 5.0]), rows([0.1] * 3, [0.0] * 3, [0.0] * 3)
    mask = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])
    assert torch.allclose(ops.sequence_log_ratios(now, before, mask), rows(0.1, -2.5, 0.0))


def test_the_overlong_penalty_by_hand():
    lengths = torch.tensor([0, 6, 7, 8, 10, 11, 99])
    assert torch.allclose(
        ops.overlong_penalty(lengths, longest=10, buffer=4), torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0])
    )


def test_clipped_value_loss_by_hand():
    values, old, returns = rows([1.0, 1.0]), rows([0.0, 0.9]), rows([1.0, 2.0])
    assert torch.allclose(ops.clipped_value_loss(values, old, returns, 0.2), 0.5 * rows([0.64, 1.0]))
    assert torch.allclose(ops.clipped_value_loss(values, old, returns, 0.0), 0.5 * rows([0.0, 1.0]))


def test_expectile_loss_by_hand():
    values, targets = rows([0.0, 1.0, 1.0]), rows([2.0, 0.0, 1.0])
    assert torch.allclose(ops.expectile_loss(values, targets, 0.8), rows([0.8 * 4, 0.2, 0.0]))
    draws = torch.tensor([0.0, 0.0, 1.0])
    # Its minimum over draws solves 2/3 (1 - tau) x = 1/3 tau (1 - x): the mean for 0.5, 0.9 / 1.1 for 0.9.
    for tau, expected in ((0.5, 1 / 3), (0.9, 0.9 / 1.1)):
        grid = torch.linspace(0, 1, 1001)
        best = grid[ops.expectile_loss(grid[:, None], draws, tau).mean(1).argmin()]
        assert float(best) == pytest.approx(expected, abs=1e-3)


def test_one_step_targets_by_hand_with_a_step_that_is_no_action():
    rewards, values = rows([0.0, 0.0, 1.0], [0.0, 7.0, 2.0]), rows([0.1, 0.2, 0.4], [0.3, 9.0, 0.6])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    expected = rows([0.5 * 0.2, 0.5 * 0.4, 1.0], [0.5 * 0.6, 0.0, 2.0])
    assert torch.allclose(ops.one_step_targets(rewards, values, mask, 0.5), expected)


def test_last_actions_by_hand():
    mask = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])
    assert ops.last_actions(mask).tolist() == [[False, True, False], [False, False, True], [False] * 3]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from(["token_mean", "sequence_mean", "sequence_sum", "rows"]))
def test_microbatch_shares_add_up_whatever_the_split(seed, aggregation):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 5, generator=generator) < 0.6
    mask[2] = False  # a fully masked row counts for nothing
    losses = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    if aggregation == "rows":
        losses, aggregation = losses[:, 0], "token_mean"
    tokens, count = mask.sum().clamp_min(1), mask.any(1).sum().clamp_min(1)
    whole = ops.aggregate_losses(losses, mask, aggregation, tokens, count)
    parts = [ops.aggregate_losses(losses[r], mask[r], aggregation, tokens, count) for r in torch.arange(6).split(1)]
    assert torch.isclose(sum(parts), whole)
    kept = mask.any(1)
    without = ops.aggregate_losses(losses[kept], mask[kept], aggregation, tokens, count)
    assert torch.isclose(without, whole)


def test_aggregations_by_hand():
    losses, mask = rows([1.0, 2.0], [6.0, 0.0]), torch.tensor([[True, True], [True, False]])
    results = {
        a: ops.aggregate_losses(losses, mask, a, 3, 2).item() for a in ("token_mean", "sequence_mean", "sequence_sum")
    }
    assert results == {"token_mean": 3.0, "sequence_mean": 3.75, "sequence_sum": 4.5}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_rewards_hold_the_score_once_and_the_penalty_on_actions_only(estimator):
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    logprobs = torch.full((3, 3), -1.0).masked_fill(~mask, 0)
    reference = torch.full((3, 3), -1.5).masked_fill(~mask, 0)
    settings_ = KLSettings(beta=0.1, estimator=estimator)
    scores = torch.tensor([2.0, -1.0, 0.0])
    shaped = shape_rewards(scores, logprobs, reference, mask, settings_, 0.1)
    terms = -0.1 * ops.kl_estimate(logprobs, reference, estimator).masked_fill(~mask, 0)
    assert torch.allclose(shaped.sum(1) - terms.sum(1), scores)
    assert torch.allclose((shaped - terms)[0], torch.tensor([0.0, 0.0, 2.0]))
    assert torch.allclose((shaped - terms)[1], torch.tensor([-1.0, 0.0, 0.0]))
    in_loss = shape_rewards(scores, logprobs, reference, mask, KLSettings(placement="loss"), 0.1)
    assert torch.equal(in_loss.sum(1), scores)


def test_shaping_term_is_the_k1_reward_for_floats_too():
    assert shaping_term(-1.0, -1.5, 0.1) == pytest.approx(-0.05)


def test_adaptive_controller_by_hand():
    controller = KLController(KLSettings(beta=0.1, controller="adaptive", target=5.0, horizon=1000))
    controller.adapt(kl_per_sequence=10.0, episodes=100)  # error clipped to 0.2
    assert controller.beta == pytest.approx(0.1 * (1 + 0.2 * 100 / 1000))
    controller.adapt(kl_per_sequence=4.5, episodes=100)  # error -0.1
    assert controller.beta == pytest.approx(0.102 * (1 - 0.1 * 0.1))
    small_horizon = KLController(KLSettings(beta=0.1, controller="adaptive", target=5.0, horizon=10))
    small_horizon.adapt(kl_per_sequence=0.0, episodes=100)  # ten horizons in a batch: 20% all the same, never below 0
    assert small_horizon.beta == pytest.approx(0.1 * 0.8)
    fixed = KLController(KLSettings(beta=0.1))
    fixed.adapt(100.0, 100)
    assert fixed.beta == 0.1
    fixed.load_state_dict(controller.state_dict())
    assert fixed.beta == controller.beta


def test_kl_divergence_by_hand():
    p, q = (
        torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log(),
        torch.tensor([[0.25, 0.75, 0.0], [0.2, 0.3, 0.5]]).log(),
    )
    q.requires_grad_(True)
    found = ops.kl_divergence(p, q)
    assert found.tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0])
    found.sum().backward()
    assert torch.allclose(q.grad, -p.exp()), "finite also where neither has any probability"
