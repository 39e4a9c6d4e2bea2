"""Traps 9 to 19: log-probabilities under the distribution that was drawn from, and the KL made of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from trap_checks import check_10, check_13, check_14, check_15, check_16, check_18

from lmrl.config import build
from lmrl.engines import SamplingSpec
from lmrl.errors import SettingsError
from lmrl.models import PolicyModel
from lmrl.models.text_policy import score_logprobs, score_values
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl


def make(name, **settings):
    spec = PluginManager().get("optimizer", name)
    return spec.build(build(spec.settings, settings))


def test_trap_09_the_first_step_is_taken_from_where_it_was_sampled(toy):
    world = toy()
    metrics = world.updater(make("ppo", epochs=1, minibatches=1)).learn(
        world.rollout(rows=24), beta=0.1, update=1, seed=0
    )
    assert metrics["optimizer/ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["optimizer/approximate_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["optimizer/clip_fraction"] == 0
    fresh = toy().rollout(rows=24)
    assert torch.allclose(fresh.sampler_logprobs, fresh.reference_logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_trap_10_sampled_equals_rescored_at_any_temperature(toy, temperature):
    spec = SamplingSpec(temperature=temperature, max_new_tokens=8, eos_ids=(1,), context_length=48)
    check_10(toy(spec=spec), temperature)


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}])
def test_trap_11_a_restricted_support_is_renormalised_or_refused(toy, tiny_folder, tmp_path, filters):
    spec = SamplingSpec(max_new_tokens=8, eos_ids=(1,), context_length=48, **filters)
    world = toy(spec=spec)
    samples = world.maker.sample(world.prompts(24), 0).samples
    again = score_logprobs(world.policy, samples.inputs, spec, 100)
    assert torch.allclose(again, samples.sampler_logprobs, atol=1e-4)
    config = {"model": str(tiny_folder), "run": {"folder": str(tmp_path / "run")}, "sampling": filters}
    with pytest.raises(SettingsError, match=next(iter(filters))):
        rl(build(RLConfig, config), progress=False)


def test_trap_12_dropout_is_off_in_every_role():
    from transformers import GPT2Config, GPT2LMHeadModel

    drops = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=15, n_positions=48, n_embd=16, n_layer=2, n_head=2, **drops))
    policy = PolicyModel(model.train(), with_values=True, separate_critic=True).train()
    assert sum(part.p > 0 for part in policy.modules() if isinstance(part, torch.nn.Dropout)) > 5
    torch.nn.init.ones_(policy.value_head.weight)
    ids = torch.arange(3, 9)[None]
    from lmrl.algorithms.sequences import Sequences

    inputs = Sequences.of_pairs([(ids[0, :2], ids[0, 2:])])
    for score in (
        lambda: score_logprobs(policy, inputs, SamplingSpec(), 100),
        lambda: score_values(policy, inputs, 100)[0],
        lambda: policy(inputs).logits.detach(),
    ):
        assert torch.equal(score(), score())


def test_trap_12_a_reward_model_scores_without_dropout(tiny_folder, tmp_path):
    import json
    import shutil

    from lmrl.models.reward_model import start_reward_model

    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text()) | {"attention_dropout": 0.5}
    (folder / "config.json").write_text(json.dumps(settings))
    model = start_reward_model(folder, seed=0)
    assert model.model.config.attention_dropout == 0.5
    rows = [[3, 4, 5, 6, 7], [6, 8, 9]]
    calm = model.score_rows(rows)
    assert torch.equal(calm, model.score_rows(rows))
    model.model.train()
    noisy = [model.model(input_ids=torch.tensor(rows[:1])).logits for _ in range(2)]
    assert not torch.equal(*noisy), "with it, two passes would differ"


def test_trap_13_the_shaping_is_minus_beta_log_ratio_on_responses():
    check_13()


def test_trap_14_padding_is_in_no_statistic(toy):
    check_14(toy)


def test_trap_15_k1_and_k3_are_unbiased_and_k2_is_not():
    check_15()


def test_trap_16_k1_in_the_loss():
    check_16()


def config_of(folder, tmp_path, **kl):
    return build(
        RLConfig,
        {
            "model": str(folder),
            "run": {"folder": str(tmp_path), "device": "cpu"},
            "sampling": {"max_new_tokens": 6},
            "train": {"updates": 12, "prompts_per_update": 16, "learning_rate": 0.02},
            "optimizer": {"name": "reinforce"},
            "evaluation": {"prompts": 0},
            "trackers": [],
            "kl": kl,
        },
    )


def cats(prompts, responses):
    return [float(response.split().count("cat")) for response in responses]


PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran"]


def test_trap_17_a_larger_beta_keeps_the_kl_smaller(tiny_folder, tmp_path):
    final = []
    for beta in (0.0, 0.5):
        folder = tmp_path / str(beta)
        config = config_of(tiny_folder, folder, beta=beta, log_reference="always")
        rl(config, reward=cats, prompts=PROMPTS, progress=False)
        final.append(sum(record["rollout/kl"] for record in read_metrics(folder)[-3:]) / 3)
    assert final[1] < 0.7 * final[0]


def test_trap_18_the_controller_works_on_the_kl_of_a_sequence(tiny_folder, tmp_path):
    check_18()
    settings = {"beta": 0.1, "controller": "adaptive", "target": 0.5, "horizon": 64.0}
    rl(config_of(tiny_folder, tmp_path / "run", **settings), reward=cats, prompts=PROMPTS, progress=False)
    records = read_metrics(tmp_path / "run")[1:]
    for now, after in pairwise(records):
        error = min(max(now["rollout/kl"] / 0.5 - 1, -0.2), 0.2)
        assert after["rollout/beta"] == pytest.approx(now["rollout/beta"] * (1 + error * 16 / 64))
    assert len({record["rollout/beta"] for record in records}) > 3


def test_trap_19_the_policy_that_sampled_is_not_the_one_that_learns(toy):
    """An engine whose weights lag behind: the ratio is against what it recorded, not against the trainer's own."""
    import dataclasses

    world = toy()
    rollout = world.rollout(rows=12)
    lower = (rollout.sampler_logprobs - 0.05).masked_fill(~rollout.action_mask, 0)
    behind = dataclasses.replace(rollout, sampler_logprobs=lower, proximal_logprobs=lower)
    metrics = world.updater(make("ppo", epochs=1, minibatches=1)).learn(behind, beta=0.0, update=1, seed=0)
    assert metrics["optimizer/ratio"] == pytest.approx(torch.tensor(0.05).exp().item(), abs=1e-4)
    # After several steps the denominator is still who sampled, not who was there at the last step.
    world = toy()
    rollout = world.rollout(rows=12)
    with torch.no_grad():
        world.policy.model.lm_head.weight.mul_(1.5)
    moved = score_logprobs(world.policy, rollout.inputs, world.spec, 100)
    expected = (moved - rollout.sampler_logprobs).exp()[rollout.action_mask].mean().item()
    metrics = world.updater(make("ppo", epochs=1, minibatches=1)).learn(rollout, beta=0.0, update=1, seed=0)
    assert metrics["optimizer/ratio"] == pytest.approx(expected, rel=1e-4) and abs(expected - 1) > 1e-3
    reference = score_logprobs(world.reference, rollout.inputs, world.spec, 100)
    assert torch.allclose(rollout.reference_logprobs, reference, atol=1e-5), "and the reference is a third one"
