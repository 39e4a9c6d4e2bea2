"""Defects that libraries have shipped, planted one at a time: the trap's own check has to notice each."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import trap_checks as checks

from lmrl.algorithms import kl, ops
from lmrl.algorithms.kl import KLController
from lmrl.engines import SamplingSpec
from lmrl.models import policy as policies
from lmrl.models import text_policy
from lmrl.models.layouts import packed, padded
from lmrl.stages.rl import rollouts
from lmrl.training import update as updates


@pytest.fixture
def caught(monkeypatch):
    """Plant a defect, and expect the check, which passes without it, to fail."""

    def run(check, module, name, defect):
        check()
        monkeypatch.setattr(module, name, defect)
        with pytest.raises(AssertionError):
            check()

    return run


def test_trap_03_planted_the_score_on_every_action(toy, caught):
    shape = kl.shape_rewards

    def everywhere(scores, logprobs, reference, mask, settings, beta):
        total = scores.sum(1, keepdim=True) if scores.ndim == 2 else scores[:, None]
        return shape(torch.zeros_like(scores), logprobs, reference, mask, settings, beta) + total * mask

    caught(lambda: checks.check_03(toy()), rollouts, "shape_rewards", everywhere)


def test_trap_04_planted_the_logits_of_the_token_itself(table_model, caught):
    positions = padded.state_positions

    def one_late(inputs, width, include_last):
        return positions(inputs, width, include_last).roll(1, 1)

    caught(lambda: checks.check_04(table_model), padded, "state_positions", one_late)
    assert policies.PolicyModel(table_model).layout.name == "general", "a padded layout was tried"


def laid_out(world, layout):
    world.policy.layout = layout
    return world


def test_trap_05_planted_rows_that_see_their_padding(toy, caught):
    states = padded.PaddedLayout.states

    def left_padded(layout, inputs, include_last):
        width = int(inputs.lengths.max())
        rolled = [row[:width].roll(int(width - n)) for row, n in zip(inputs.ids, inputs.lengths, strict=True)]
        changed = dataclasses.replace(inputs, ids=torch.stack(rolled), sampled=inputs.sampled[:, :width])
        return states(layout, changed, include_last)

    caught(
        lambda: checks.check_05(laid_out(toy(), padded.PaddedLayout()), 5), padded.PaddedLayout, "states", left_padded
    )


def test_trap_05_planted_packed_rows_whose_positions_run_on(toy, caught):
    pack = packed.pack

    def run_on(inputs, include_last=False):
        packing = pack(inputs, include_last)
        return dataclasses.replace(packing, positions=torch.arange(len(packing.ids)))

    caught(lambda: checks.check_05(laid_out(toy(), packed.PackedLayout()), 5), packed, "pack", run_on)


@pytest.mark.parametrize("path", ["hidden states", "logits"])
def test_trap_10_planted_a_scorer_at_temperature_one(path, toy, caught, monkeypatch):
    spec = SamplingSpec(temperature=0.7, max_new_tokens=8, eos_ids=(1,), context_length=48)
    evaluation = text_policy.TextEvaluation

    def at_one(outputs, ids, mask, spec):
        return evaluation(outputs, ids, mask, dataclasses.replace(spec, temperature=1.0))

    if path == "hidden states":
        caught(lambda: checks.check_10(toy(spec=spec), 0.7), text_policy, "plain_temperature", lambda spec: 1.0)
    else:
        monkeypatch.setattr(text_policy, "plain_temperature", lambda spec: None)
        caught(lambda: checks.check_10(toy(spec=spec), 0.7), text_policy, "TextEvaluation", at_one)


def test_trap_13_planted_the_other_sign(caught):
    caught(checks.check_13, kl, "shaping_term", lambda logprob, reference, beta: beta * (logprob - reference))


def test_trap_14_planted_a_mean_over_padding_too(toy, caught):
    def unmasked(losses, mask, aggregation, tokens, rows):
        return losses.sum() / mask.numel()

    caught(lambda: checks.check_14(toy), updates, "aggregate_losses", unmasked)


def test_trap_15_planted_a_clamped_estimator(caught):
    estimate = ops.kl_estimate
    caught(checks.check_15, ops, "kl_estimate", lambda p, q, name: estimate(p, q, name).clamp(-1, 1))


def test_trap_16_planted_k1_as_it_stands(caught):
    def naive(logprobs, behavior, reference, mask, settings):
        return logprobs - reference

    caught(checks.check_16, kl, "kl_losses", naive)


def test_trap_18_planted_a_controller_without_bounds(caught):
    def unbounded(self, kl_per_sequence, episodes):
        self.beta *= 1 + (kl_per_sequence / self.settings.target - 1) * episodes / self.settings.horizon

    caught(checks.check_18, KLController, "adapt", unbounded)


def test_trap_20_planted_truncation_as_an_end(caught):
    gae = ops.generalized_advantages

    def blind(rewards, values, bootstrap, mask, truncated, gamma=1.0, lambda_=0.95):
        return gae(rewards, values, bootstrap, mask, truncated & False, gamma, lambda_)

    caught(checks.check_20, ops, "generalized_advantages", blind)


def test_trap_24_planted_a_division_by_the_plain_deviation(caught):
    def naive(x, mask, shift_mean=True, epsilon=1e-8):
        mean = x[mask].mean()
        return ((x - mean) / x[mask].std() + (0 if shift_mean else mean)).masked_fill(~mask, 0)

    caught(checks.check_24, ops, "masked_whiten", naive)


def test_trap_26_planted_rows_shuffled_one_by_one(toy, caught):
    def by_row(batch, minibatches, generator):
        return iter(torch.randperm(len(batch), generator=generator).tensor_split(minibatches))

    rollout = toy().rollout(rows=24, group_size=4)
    caught(lambda: checks.check_26(rollout), updates, "minibatch_rows", by_row)


def test_trap_27_planted_a_value_that_is_clipped_around_the_return(caught):
    def around_returns(values, old_values, returns, clip):
        near = returns + (values - returns).clamp(-clip, clip)
        return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)

    caught(checks.check_27, ops, "clipped_value_loss", around_returns)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_sum"])
def test_trap_28_planted_averages_of_each_microbatch(toy, caught, aggregation):
    aggregate = ops.aggregate_losses

    def own_counts(losses, mask, aggregation, tokens, rows):
        return aggregate(losses, mask, aggregation, mask.sum().clamp_min(1), mask.any(1).sum().clamp_min(1))

    caught(lambda: checks.check_28(toy, aggregation), updates, "aggregate_losses", own_counts)


def test_trap_29_planted_a_count_of_all_rows(caught):
    def all_rows(losses, mask, aggregation, tokens, rows):
        return losses.masked_fill(~mask, 0).sum() / len(mask) if losses.ndim == 2 else losses.mean()

    caught(checks.check_29, ops, "aggregate_losses", all_rows)


def test_trap_30_planted_swapped_bounds(caught):
    surrogate = ops.clipped_surrogate
    caught(checks.check_30, ops, "clipped_surrogate", lambda p, q, a, low, high: surrogate(p, q, a, high, low))
