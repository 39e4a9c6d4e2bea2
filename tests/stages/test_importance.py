"""Samples of another distribution than the policy's: one pass finds the policy's own, and weights correct the rest."""

import random
from dataclasses import replace

import pytest
import torch

from lmrl.config import build
from lmrl.engines import Capabilities
from lmrl.engines.local.engine import TransformersEngine
from lmrl.models.text_policy import TextPolicy
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import Needs
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.training.proximal import importance_weights


class SkewedEngine(TransformersEngine):
    """The default engine with log-probabilities that another one may give: off by up to 0.3 nats per token."""

    capabilities = Capabilities()

    def generate(self, requests):
        generator = random.Random(5)
        for response in super().generate(requests):
            yield replace(response, logprobs=[one + generator.uniform(-0.3, 0.3) for one in response.logprobs])


def both(toy, rows=12):
    """Return a toy, its rollout with exact log-probabilities, and the same tokens from the skewed engine."""
    made = toy()
    exact = made.rollout(rows)
    made.maker.engine, made.maker.exact = SkewedEngine(), False
    made.maker.publish(0)
    made.maker.own, made.maker.token_budget = TextPolicy(made.policy, made.spec, with_values=False), 24
    return made, exact, made.rollout(rows)


def test_one_tensor_where_the_engine_is_exact(toy):
    rollout = toy().rollout(6)
    assert rollout.proximal_logprobs is rollout.sampler_logprobs
    assert not rollout.turn.any() and rollout.policy_version.shape == rollout.action_mask.shape


def test_the_policys_own_logprobs_stand_in_ratios_and_in_the_shaped_rewards(toy):
    _, exact, other = both(toy)
    assert torch.equal(exact.inputs.action_ids, other.inputs.action_ids)
    assert torch.allclose(other.proximal_logprobs, exact.sampler_logprobs, atol=1e-5)
    assert (other.sampler_logprobs - exact.sampler_logprobs).abs().max() > 0.2
    assert torch.allclose(other.rewards, exact.rewards, atol=1e-5)


def gradient(made, rollout, name, importance=True, **train):
    spec = PluginManager().get("optimizer", name)
    optimizer = spec.build(spec.settings())
    updater = made.updater(optimizer, **train)
    updater.needs = Needs(importance=importance)
    before = made.parameters()
    metrics = updater.learn(rollout, beta=0.0, update=1, seed=0)
    moved = made.parameters() - before
    offset = 0
    with torch.no_grad():  # back to where it was
        for parameter in made.policy.parameters():
            parameter.copy_(before[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()
    return moved, metrics


@pytest.mark.parametrize("name", ["reinforce", "grpo", "rloo", "gspo", "gmpo", "sapo"])
def test_weights_multiply_the_advantages(toy, name):
    """The step is that of exact samples whose advantages are multiplied by the weights."""
    made, exact, other = both(toy)
    exact, other = (replace(rollout, group=torch.arange(12) // 4) for rollout in (exact, other))
    weights = importance_weights(other.proximal_logprobs, other.sampler_logprobs, other.action_mask, 1.2)
    assert weights.max() == pytest.approx(1.2)
    spec = PluginManager().get("optimizer", name)

    class Weighted(type(spec.build(spec.settings()))):
        def advantages(self, rollout):
            found = super().advantages(rollout)
            return replace(found, advantages=found.advantages * weights)

    updater = made.updater(Weighted(spec.settings()))
    before = made.parameters()
    updater.learn(exact, beta=0.0, update=1, seed=0)
    expected = made.parameters() - before
    made, _, other = both(toy)
    other = replace(other, group=torch.arange(12) // 4)
    found, metrics = gradient(made, other, name, importance_cap=1.2)
    assert torch.allclose(found, expected, atol=1e-6)
    mask = other.loss_mask
    share = weights[mask].mean() ** 2 / weights[mask].square().mean()
    assert metrics["optimizer/effective_sample_share"] == pytest.approx(float(share), abs=1e-5)
    assert metrics["optimizer/importance_weight"] == pytest.approx(float(weights[mask].mean()), abs=1e-5)


def test_a_method_that_opts_out_is_not_weighted(toy):
    made, exact, other = both(toy)
    plain, _ = gradient(made, replace(exact, group=torch.arange(12) // 4), "raft")
    found, metrics = gradient(made, replace(other, group=torch.arange(12) // 4), "raft", importance=False)
    assert torch.allclose(found, plain, atol=1e-6) and "optimizer/effective_sample_share" in metrics
    assert not PluginManager().get("optimizer", "raft").needs.importance


def test_weighted_samples_have_the_policys_expectation():
    """Of one token each, drawn from q: the mean of weight times anything is its mean under the policy."""
    torch.manual_seed(0)
    policy, sampler = torch.randn(7).log_softmax(0), torch.randn(7).log_softmax(0)
    anything, mask = torch.randn(7), torch.ones(7, 1, dtype=torch.bool)
    weights = importance_weights(policy[:, None], sampler[:, None], mask, cap=1e9).squeeze(1)
    assert float((sampler.exp() * weights * anything).sum()) == pytest.approx(float((policy.exp() * anything).sum()))


PLUGIN = """
from dataclasses import dataclass, replace
from lmrl import EngineSpec, hookimpl
from lmrl.engines import Capabilities
from lmrl.engines.local.engine import TransformersEngine

@dataclass
class Settings:
    shift: float = 0.05

class Shifted(TransformersEngine):
    capabilities = Capabilities()

    def __init__(self, settings):
        super().__init__()
        self.shift = settings.shift

    def generate(self, requests):
        for response in super().generate(requests):
            yield replace(response, logprobs=[one - self.shift for one in response.logprobs])

@hookimpl
def lmrl_engines():
    yield EngineSpec("shifted", Shifted, Settings)
"""


def test_a_run_with_an_engine_that_is_not_exact(tiny_folder, tmp_path):
    """Its ratios begin at 1, its KL is that of the policy, and the weights are logged."""
    file = tmp_path / "shifted.py"
    file.write_text(PLUGIN, encoding="utf-8")
    found = {}
    for engine in ("shifted", "transformers"):
        config = build(
            RLConfig,
            {
                "model": str(tiny_folder),
                "run": {"folder": str(tmp_path / engine), "device": "cpu", "precision": "no"},
                "prompts": {"name": "file", "file": {"path": str(write_prompts(tmp_path))}},
                "reward": {"name": "length", "length": {"maximum": 4}},
                "sampling": {"max_new_tokens": 6},
                "train": {"updates": 1, "prompts_per_update": 4, "group_size": 2},
                "optimizer": {"name": "ppo", "ppo": {"epochs": 1, "minibatches": 1}},
                "evaluation": {"prompts": 0},
                "engine": {"name": engine},
                "trackers": [],
            },
        )
        rl(config, plugins=PluginManager([file]), progress=False)
        found[engine] = read_metrics(tmp_path / engine)[-1]
    assert found["shifted"]["optimizer/ratio"] == pytest.approx(1, abs=1e-5)
    assert found["shifted"]["rollout/kl"] == pytest.approx(found["transformers"]["rollout/kl"], abs=1e-5)
    assert found["shifted"]["optimizer/importance_weight"] == pytest.approx(torch.tensor(0.05).exp().item(), abs=1e-4)
    assert found["shifted"]["optimizer/effective_sample_share"] == pytest.approx(1, abs=1e-5)
    assert "optimizer/importance_weight" not in found["transformers"]


def write_prompts(folder):
    """Write a file of prompts that the tiny model knows, and return it."""
    path = folder / "prompts.txt"
    path.write_text("the cat\na dog\nthe dog sat\na cat ran\nthe\na\n", encoding="utf-8")
    return path
