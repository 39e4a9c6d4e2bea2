"""The examples of "What a plugin can express" in docs/plugins.md: loaded as plugin files, and held to the contract."""

import re

import pytest

from lmrl.algorithms.kl import KLSettings
from lmrl.plugins import PluginManager
from lmrl.testing import check_optimizer, expected_update, random_problem

HEADING = "## What a plugin can express"
EXAMPLE = re.compile(r"[Ss]aved as `(\w+)\.py`:\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTIMIZERS = {"pairwise_ppo": {}, "scored_head": {}, "gdpo": {}, "constrained": {"part": "first", "limit": 0.6}}
"""By name, with the settings that the kit's toy rollouts need."""


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
    check_optimizer(spec, spec.settings(**OPTIMIZERS[name]))


def test_pairwise_ppo_takes_the_exact_gradient(plugins):
    problem, kl = random_problem(1, vocabulary=3, max_new_tokens=2), KLSettings(0.3)
    policy = problem.policy(noise=0.3, seed=3)
    found = expected_update(plugins.get("optimizer", "pairwise_ppo"), problem, policy=policy, group_size=2, kl=kl)
    expected = problem.gradient(policy, kl.beta)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
