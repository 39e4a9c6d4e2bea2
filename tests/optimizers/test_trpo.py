"""TRPO: conjugate gradients, the trust region, a line search that gives up, ranks and resumes."""

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lmrl.algorithms.kl import KLSettings
from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl.models import PolicyModel
from lmrl.models.text_policy import TextPolicy
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.training.adamw import policy_adamw
from lmrl.training.checkpoint import list_checkpoints
from lmrl.training.schedule import GroupRates
from lmrl.training.update_settings import TrainSettings
from lmrl_trpo import TRPO, TRPOSettings

STAGES = Path(__file__).parents[1] / "stages"


def fixtures_of(name):
    spec = importlib.util.spec_from_file_location(f"stages_{name}", STAGES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def world_of(folder, settings, kl=None, **train):
    """A tiny policy with a critic of its own, and an updater with the trainer's AdamW."""
    world = fixtures_of("conftest").Toy(folder, kl=kl)
    world.policy = PolicyModel(world.language_model.model, with_values=True, separate_critic=True)
    world.maker.policy = world.policy
    updater = world.updater(TRPO(settings), **train)
    updater.torch_optimizer = policy_adamw(world.policy.trainable(), TrainSettings())
    updater.rates = GroupRates(updater.torch_optimizer, updater.settings)
    return world, updater


def model_parameters(world):
    return torch.cat([p.detach().flatten() for p in world.language_model.model.parameters()])


@torch.no_grad()
def mean_kl(world, rollout, before):
    """KL(before || now) per token over the full distributions."""
    now = TextPolicy(world.policy, world.spec, False).evaluate(rollout).log_distributions
    return float((before.exp() * (before - now)).sum(-1).mean())


@pytest.mark.parametrize("maximum_kl", [1e-3, 1e-2])
def test_a_step_uses_its_trust_region_and_stays_within(tiny_folder, maximum_kl):
    world, updater = world_of(tiny_folder, TRPOSettings(maximum_kl=maximum_kl))
    rollout = world.rollout(rows=24)
    with torch.no_grad():
        before = updater.policy.evaluate(rollout).log_distributions
    updater.policy.forget()
    metrics = updater.learn(rollout, beta=0.1, update=1, seed=0)
    moved = mean_kl(world, rollout, before)
    assert metrics["optimizer/step_kl"] == pytest.approx(moved, rel=1e-3)
    assert 0.1 * maximum_kl < moved <= maximum_kl
    assert metrics["optimizer/step_failed"] == 0 and metrics["optimizer/surrogate_gain"] > 0
    assert metrics["optimizer/steps"] == 5, "four passes more, for the value function alone"


def test_without_damping_and_whitening_a_small_step_is_the_natural_gradient(tiny_folder):
    """Its length in KL is the one asked for, which a plain gradient step's is not."""
    settings = TRPOSettings(maximum_kl=1e-4, damping=1e-6, conjugate_gradient_steps=40, epochs=1)
    world, updater = world_of(tiny_folder, settings)
    metrics = updater.learn(world.rollout(rows=24), beta=0.1, update=1, seed=0)
    assert metrics["optimizer/step_kl"] / metrics["optimizer/step_fraction"] ** 2 == pytest.approx(1e-4, rel=0.2)


def test_a_line_search_that_fails_leaves_the_parameters_bit_for_bit(tiny_folder, monkeypatch):
    world, updater = world_of(tiny_folder, TRPOSettings())
    monkeypatch.setattr("lmrl_trpo.flat.FlatMinibatch.loss", lambda self: 1.0)  # nothing is ever gained
    before, critic = model_parameters(world), world.policy.value_head.bias.clone()
    metrics = updater.learn(world.rollout(), beta=0.1, update=1, seed=0)
    assert metrics["optimizer/step_failed"] == 1 and metrics["optimizer/step_fraction"] == 0
    assert torch.equal(model_parameters(world), before)
    assert not torch.equal(world.policy.value_head.bias, critic), "the value function learns all the same"


def test_nothing_to_gain_is_no_step(tiny_folder):
    world, updater = world_of(tiny_folder, TRPOSettings(), kl=KLSettings(beta=0.0))
    world.maker.reward = lambda prompts, responses, columns: SimpleNamespace(scores=[0.0] * len(prompts), parts={})
    before = model_parameters(world)
    metrics = updater.learn(world.rollout(), beta=0.0, update=1, seed=0)
    assert torch.equal(model_parameters(world), before) and metrics["optimizer/step_failed"] == 1


@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_microbatches_change_no_step(tiny_folder, placement):
    steps = []
    for tokens in (10_000, 40, 1):
        kl = KLSettings(beta=0.1, placement=placement, estimator="k3" if placement == "loss" else "k1")
        world, updater = world_of(tiny_folder, TRPOSettings(epochs=1), kl, microbatch_tokens=tokens)
        before = model_parameters(world)
        updater.learn(world.rollout(), beta=0.1, update=1, seed=0)
        steps.append(model_parameters(world) - before)
    assert steps[0].abs().max() > 1e-3
    for step in steps[1:]:
        assert torch.allclose(step, steps[0], atol=2e-3 * float(steps[0].abs().max()))


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_trpo import *
world, updater = world_of(Path(sys.argv[2]), TRPOSettings(epochs=2), microbatch_tokens=40)
rollout = world.rollout(rows=12)
accelerator = world.accelerator
share = 12 // accelerator.num_processes
first = accelerator.process_index * share
module, updater.torch_optimizer = accelerator.prepare(world.policy, updater.torch_optimizer)
updater.policy = TextPolicy(module, world.spec, True)
before, head = model_parameters(world), world.policy.value_head.weight.detach().clone()
metrics = updater.learn(rollout.select(torch.arange(first, first + share)), beta=0.1, update=1, seed=0)
change = (model_parameters(world) - before).tolist()
head = (world.policy.value_head.weight - head).flatten().tolist()
if accelerator.is_main_process:
    print("RESULT" + json.dumps({"metrics": metrics, "change": change, "head": head}))
if accelerator.num_processes > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one(tiny_folder, tmp_path):
    ranks = fixtures_of("test_ranks")
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    one, two = (ranks.run_ranks(count, script, [str(Path(__file__).parent), str(tiny_folder)]) for count in (1, 2))
    largest = max(abs(x) for x in one["change"])
    assert largest > 1e-3
    assert two["change"] == pytest.approx(one["change"], abs=2e-3 * largest)
    assert two["head"] == pytest.approx(one["head"], abs=1e-5)
    assert two["metrics"]["optimizer/step_kl"] == pytest.approx(one["metrics"]["optimizer/step_kl"], rel=1e-2)


def cats(prompts, responses):
    return [response.count("cat") - 0.05 * len(response.split()) for response in responses]


def config_of(model, folder, **train):
    return build(
        RLConfig,
        {
            "model": str(model),
            "run": {"folder": str(folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 6},
            "train": {"updates": 4, "prompts_per_update": 16, **train},
            "optimizer": {"name": "trpo", "trpo": {"maximum_kl": 0.02}},
            "evaluation": {"prompts": 0},
            "checkpoint": {"every": 1, "keep": 10},
        },
    )


def run(config, **kwargs):
    return rl(config, reward=cats, prompts=["the cat", "a dog", "the dog sat", "a cat"], progress=False, **kwargs)


def metrics_of(folder):
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(folder)]


def test_a_resumed_run_is_the_same_bit_for_bit(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run")
    run(config)
    whole = metrics_of(tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run")[2:]:
        shutil.rmtree(checkpoint)
    run(config, resume=True)
    assert metrics_of(tmp_path / "run") == whole


def test_a_run_raises_the_reward(tiny_folder, tmp_path):
    run(config_of(tiny_folder, tmp_path / "run", updates=12, prompts_per_update=48))
    records = read_metrics(tmp_path / "run")
    assert records[-1]["rollout/reward"] > records[1]["rollout/reward"] + 0.1
    assert all(record["optimizer/step_kl"] <= 0.02 for record in records[1:])


@pytest.mark.parametrize(
    "settings", [{"maximum_kl": 0.0}, {"damping": -1.0}, {"conjugate_gradient_steps": 0}, {"line_search_steps": 0}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        TRPOSettings(**settings)
