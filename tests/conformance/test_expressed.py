"""The examples of "What a plugin can express" in docs/plugins.md: loaded as plugin files, and held to the contract."""

import re
from types import SimpleNamespace

import pytest
import torch

from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.rollout import Batch, Rollout
from lmrl.plugins import PluginManager
from lmrl.testing import CHECKS, check_optimizer, expected_update, random_problem

HEADING = "## What a plugin can express"
EXAMPLE = re.compile(r"[Ss]aved as\s+`(\w+)\.py`[^`]*?:\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTIMIZERS = {
    "pairwise_ppo": {},
    "scored_head": {},
    "gdpo": {},
    "gvpo": {},
    "listwise": {},
    "constrained": {"part": "first", "limit": 0.6},
    "beat_reference": {},
    "slow_teacher": {},
    "unlikely": {},
}
"""By name, with the settings that the kit's toy rollouts need."""
LEARNS_TO_AVOID = {"unlikely"}
"""Those whose loss makes its data less likely, so that the score of a toy policy does not rise."""


@pytest.fixture(scope="module")
def plugins(root, tmp_path_factory):
    page = (root / "docs" / "plugins.md").read_text(encoding="utf-8")
    section = page.split(HEADING)[1].split("\n## ")[0]
    folder, files = tmp_path_factory.mktemp("expressed"), []
    for name, text in EXAMPLE.findall(section):
        files.append(folder / f"{name}.py")
        files[-1].write_text(text, encoding="utf-8")
    return PluginManager(files=files)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_example_keeps_the_contract(plugins, name):
    spec = plugins.get("optimizer", name)
    checks = [check for check in CHECKS if check != "learning" or name not in LEARNS_TO_AVOID]
    check_optimizer(spec, spec.settings(**OPTIMIZERS[name]), checks=checks)


def test_every_example_is_held_to_it(plugins):
    shipped = PluginManager().optimizers()
    assert plugins.optimizers().keys() - shipped.keys() == OPTIMIZERS.keys()


def test_pairwise_ppo_takes_the_exact_gradient(plugins):
    problem, kl = random_problem(1, vocabulary=3, max_new_tokens=2), KLSettings(0.3)
    policy = problem.policy(noise=0.3, seed=3)
    found = expected_update(plugins.get("optimizer", "pairwise_ppo"), problem, policy=policy, group_size=2, kl=kl)
    expected = problem.gradient(policy, kl.beta)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("size", [2, 3])
def test_gvpo_takes_a_share_of_the_exact_gradient(plugins, size):
    """Whatever policy sampled it, beta (K - 1) / K of the gradient of E[score] - beta KL with its own beta."""
    problem = random_problem(1, vocabulary=3, max_new_tokens=2)
    spec, policy, beta = plugins.get("optimizer", "gvpo"), problem.policy(noise=0.3, seed=3), 0.3
    found = expected_update(spec, problem, settings=spec.settings(beta=beta), policy=policy, group_size=size)
    expected = beta * (size - 1) / size * problem.gradient(policy, beta)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize(
    ("name", "optimum"), [("gvpo", True), ("listwise", True), ("gvpo", False), ("listwise", False)]
)
def test_at_the_optimum_a_loss_of_whole_groups_has_no_gradient(plugins, name, optimum):
    """Of two groups of different size, pi = pi_ref exp(score / beta) / Z; the normalisers differ between groups."""
    spec, scores, group = plugins.get("optimizer", name), torch.tensor([1.0, 0.0, 0.5, 2.0, -1.0]), [7, 7, 3, 3, 3]
    reference, ones = torch.tensor([[-1.0], [-2.0], [-0.5], [-1.5], [-3.0]]), torch.ones(5, 1, dtype=torch.bool)
    rollout = Rollout(
        None, ones, reference, scores[:, None], scores, ones[:, 0], ~ones[:, 0], torch.tensor(group),
        {"reference_logprobs": reference},
    )  # fmt: skip
    optimizer = spec.build(spec.settings(beta=0.5))
    batch = Batch.from_rollout(rollout, optimizer.advantages(rollout))
    shift = torch.tensor([0.3, 0.3, -0.2, -0.2, -0.2])[:, None]
    now = (reference + scores[:, None] / (0.5 if optimum else 1.0) + shift).requires_grad_()
    policy = SimpleNamespace(evaluate=lambda batch: SimpleNamespace(logprobs=now))
    optimizer.loss(policy, batch).losses.sum().backward()
    assert (float(now.grad.abs().max()) < 1e-6) == optimum
