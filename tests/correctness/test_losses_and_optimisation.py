"""Traps 28 to 40: what is averaged, cut, detached, seeded, saved and stopped."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from trap_checks import check_28, check_29, check_30

from lmrl.algorithms import ops
from lmrl.algorithms.experience import PairBatch
from lmrl.algorithms.rollout import Batch, Rollout
from lmrl.config import build
from lmrl.engines import SamplingSpec
from lmrl.errors import NonFiniteError, ResumeError, RewardError
from lmrl.models import PolicyModel
from lmrl.models.ranking_losses import pairwise_bradley_terry, plackett_luce
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.seeds import derive_seed
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.rl import source as rl_source
from lmrl.stages.rl.rollouts import PromptBatch
from lmrl.training import update as update_module
from lmrl.training.checkpoint import list_checkpoints

PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran", "the", "a", "home", "far .", "the dog", "a cat", "sad", "."]


def cats(prompts, responses):
    return [float(response.split().count("cat")) for response in responses]


def make(name, **settings):
    spec = PluginManager().get("optimizer", name)
    return spec.build(build(spec.settings, settings))


def config_of(model, folder, **sections):
    mapping = {
        "model": str(model),
        "run": {"folder": str(folder), "device": "cpu"},
        "sampling": {"max_new_tokens": 6},
        "train": {"updates": 4, "prompts_per_update": 8, "learning_rate": 0.01},
        "optimizer": {"name": "ppo", "ppo": {"epochs": 2, "minibatches": 2}},
        "evaluation": {"prompts": 2, "every": 2},
        "checkpoint": {"every": 1, "keep": 9},
        "trackers": [],
    }
    return build(RLConfig, mapping | sections)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_trap_28_accumulation_changes_no_gradient(toy, aggregation):
    check_28(toy, aggregation)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_trap_28_the_shares_of_two_ranks_add_up(aggregation):
    generator = torch.Generator().manual_seed(0)
    losses, mask = torch.randn(6, 5, generator=generator), torch.rand(6, 5, generator=generator) < 0.6
    counts = mask.sum(), mask.any(1).sum()
    whole = ops.aggregate_losses(losses, mask, aggregation, *counts)
    shares = [ops.aggregate_losses(losses[rows], mask[rows], aggregation, *counts) for rows in ([0, 4], [1, 2, 3, 5])]
    assert torch.allclose(sum(shares), whole, atol=1e-6)


def test_trap_29_a_masked_row_counts_for_nothing():
    check_29()


def test_trap_30_the_gradient_is_cut_where_clipping_says_so():
    check_30()


class Fixed:
    """A policy whose log-probabilities are a tensor."""

    def __init__(self, logprobs):
        self.logprobs = logprobs

    def evaluate(self, batch):
        return self


def batch_of(advantages, behavior, mask=None):
    mask = torch.ones_like(behavior, dtype=torch.bool) if mask is None else mask
    rows = len(behavior)
    flags = torch.zeros(rows, dtype=torch.bool)
    rollout = Rollout(None, mask, behavior, behavior * 0, advantages[:, 0], ~flags, flags, torch.zeros(rows).long())
    return Batch(rollout, advantages, {})


def test_trap_31_a_sequence_level_ratio_is_the_mean_masked_log_ratio():
    now = torch.tensor([[0.3, 0.1, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    optimizer = make("gspo", clip_range=0.5, clip_range_high=0.5)
    batch = batch_of(torch.ones(1, 3), torch.zeros(1, 3), mask)
    losses = optimizer.loss(Fixed(now), batch).losses
    assert losses.detach().flatten()[0].item() == pytest.approx(-torch.tensor(0.2).exp().item(), rel=1e-5)


def test_trap_31_the_weight_of_cispo_is_detached():
    now = torch.log(torch.tensor([[1.5, 9.0]])).requires_grad_()
    losses = make("cispo").loss(Fixed(now), batch_of(torch.ones(1, 2), torch.zeros(1, 2))).losses
    losses.sum().backward()
    assert now.grad[0, 0].item() < 0 and now.grad[0, 1].item() < 0, "a clipped weight still learns"
    assert -now.grad[0, 1].item() <= 9.0 and torch.allclose(losses / now, now.grad, rtol=1e-5), "d/dx of -w x is -w"


def test_trap_31_asymmetric_bounds_are_not_swapped():
    check_30(low=0.2, high=0.3)
    with pytest.raises(AssertionError):
        check_30(low=0.3, high=0.2)


def test_trap_32_importance_weights_are_detached_and_truncated():
    now = torch.log(torch.tensor([[20.0, 0.5]])).requires_grad_()
    optimizer = make("cispo")
    losses = optimizer.loss(Fixed(now), batch_of(torch.ones(1, 2), torch.zeros(1, 2))).losses
    (gradient,) = torch.autograd.grad(losses.sum(), now)
    assert 1 < -gradient[0, 0].item() < 20, "truncated"
    assert -gradient[0, 1].item() == pytest.approx(0.5, rel=1e-5), "not truncated below by default"


def test_trap_33_the_value_head_starts_at_zero_and_scores_are_centred(toy, tiny_folder):
    from lmrl.models.reward_model import start_reward_model
    from lmrl.stages.reward.reference import normalisation_of

    rollout = toy().rollout(rows=12)
    assert not rollout.values.any() and not rollout.bootstrap_values.any()
    model = start_reward_model(tiny_folder, seed=0)
    rows = [[3, 4, 5], [6], [7, 1, 0, 8, 9], [4, 4]]
    assert abs(model.score_rows(rows).mean().item()) > 1e-3, "not centred by chance"
    model.normalisation = normalisation_of(model, ("rows", rows), 100)
    scores = model.score_rows(rows)
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)


def test_trap_34_ranks_sample_apart_and_shuffle_together(tiny_folder, tmp_path, monkeypatch):
    asked = []
    for module in (rl_source, update_module):
        monkeypatch.setattr(module, "derive_seed", lambda *parts: asked.append(parts) or derive_seed(*parts))
    rl(config_of(tiny_folder, tmp_path / "run"), reward=cats, prompts=PROMPTS, progress=False)
    assert {len(parts) for parts in asked if parts[1] == "sample"} == {3}, "no rank in it: groups are told apart"
    spec, ids, texts = SamplingSpec(), [[3]] * 8, ["a"] * 8
    whole = PromptBatch(ids, texts, {}, [row // 2 for row in range(8)])
    ranks = [PromptBatch(ids[:4], texts[:4], {}, [0, 0, 1, 1], first_group=first) for first in (0, 2)]
    seeds = [request.seed for request in whole.requests(spec, 7)]
    assert len(set(seeds)) == 8
    assert [request.seed for rank in ranks for request in rank.requests(spec, 7)] == seeds, "as on one process"
    assert {len(parts) for parts in asked if parts[1] == "minibatches"} == {3}, "no rank in it"


def digest(module):
    content = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
    return hashlib.sha256(content).hexdigest()


def test_trap_35_the_reference_never_moves(toy):
    world = toy()
    frozen, moving = digest(world.reference), digest(world.policy)
    updater = world.updater(make("ppo"))
    for update in range(1, 4):
        updater.learn(world.rollout(rows=12, seed=update), beta=0.1, update=update, seed=update)
    assert digest(world.reference) == frozen and digest(world.policy) != moving
    assert not any(p.requires_grad for p in world.reference.parameters())


def test_trap_36_evaluation_changes_no_training_state(tiny_folder, tmp_path):
    logged = []
    for every in (1, 0):
        folder = tmp_path / str(every)
        adaptive = {"controller": "adaptive", "target": 0.5, "horizon": 64.0}
        config = config_of(tiny_folder, folder, evaluation={"prompts": 2, "every": every}, kl=adaptive)
        rl(config, reward=cats, prompts=PROMPTS, progress=False)
        keep = [record for record in read_metrics(folder) if record["update"]]
        logged.append([{k: v for k, v in r.items() if not k.startswith(("time/", "evaluation/"))} for r in keep])
    assert logged[0] == logged[1]


def test_trap_37_rankings_of_two_are_bradley_terry_at_any_margin():
    ranks, mask = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    for gap in (-1e4, -3.0, 0.0, 2.0, 1e4):
        scores = torch.tensor([[gap, 0.0]], requires_grad=True)
        pair, ranking = pairwise_bradley_terry(scores, ranks, mask, 0.0), plackett_luce(scores, ranks, mask)
        assert torch.allclose(pair, ranking) and torch.isfinite(pair).all()
        assert torch.allclose(pair, -torch.nn.functional.logsigmoid(torch.tensor([gap])))
        shifted = plackett_luce(scores + 50, ranks, mask)
        assert torch.allclose(shifted, ranking, atol=1e-3)
        assert torch.isfinite(torch.autograd.grad(pair.sum(), scores)[0]).all()
    tie = plackett_luce(torch.tensor([[2.0, -1.0]]), torch.zeros(1, 2).long(), mask)
    assert float(tie) == pytest.approx(0, abs=1e-6), "a complete tie says nothing"


def weights(folder):
    from safetensors.torch import load_file

    return load_file(list_checkpoints(folder)[-1] / "model.safetensors")


def test_trap_38_a_resumed_run_equals_an_undisturbed_one(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run")
    rl(config, reward=cats, prompts=PROMPTS, progress=False)
    whole = weights(tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run")[-2:]:
        shutil.rmtree(checkpoint)
    rl(config, reward=cats, prompts=PROMPTS, progress=False, resume=True)
    again = weights(tmp_path / "run")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(ResumeError, match="changed"):
        rl(config, reward=cats, prompts=PROMPTS[:10], progress=False, resume=True)


def test_trap_39_no_rank_drops_rows(toy):
    rollout = toy().rollout(rows=8, group_size=2)
    chosen, rejected = torch.tensor([0, 2, 4, 6]), torch.tensor([1, 3, 5, 7])
    pairs = PairBatch.from_rollout(rollout, chosen, rejected, torch.tensor([True, False, True, False]))
    assert len(pairs) == 4, "ties stay as rows, so that every rank computes as many"
    assert pairs.action_mask.any(1).tolist() == [True, False, True, False]
    losses = torch.tensor([1.0, 100.0, 3.0, 100.0])
    counted = pairs.action_mask.any(1).sum()
    assert float(ops.aggregate_losses(losses, pairs.action_mask, "token_mean", 1, counted)) == 2.0


def nan_at(update):
    calls = []

    def reward(prompts, responses):
        calls.append(1)
        return [float("nan") if len(calls) == update else 1.0 for _ in responses]

    return reward


def test_trap_40_what_is_not_finite_stops_the_run_and_says_where(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "reward", evaluation={"prompts": 0})
    with pytest.raises(RewardError, match="update 3"):
        rl(config, reward=nan_at(3), prompts=PROMPTS, progress=False)
    assert [path.name for path in list_checkpoints(tmp_path / "reward")] == ["checkpoint-000001", "checkpoint-000002"]
    config = config_of(
        tiny_folder,
        tmp_path / "diverged",
        train={"updates": 4, "prompts_per_update": 8, "learning_rate": 1e30, "max_gradient_norm": 0.0},
    )
    with pytest.raises(NonFiniteError, match="update"):
        rl(config, reward=cats, prompts=PROMPTS, progress=False)
    for line in (tmp_path / "diverged" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_trap_40_a_loss_or_a_gradient_that_is_not_finite_is_named(toy):
    import dataclasses

    world = toy()
    rollout = world.rollout(rows=12)
    before = world.parameters()
    broken = dataclasses.replace(rollout, rewards=rollout.rewards * float("inf"))
    with pytest.raises(NonFiniteError, match="update 7, epoch 1, minibatch 1"):
        world.updater(make("reinforce")).learn(broken, beta=0.0, update=7, seed=0)
    assert torch.equal(world.parameters(), before)
    assert isinstance(world.policy, PolicyModel)
