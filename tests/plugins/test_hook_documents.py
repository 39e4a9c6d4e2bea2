"""docs/hooks.md names every hook with its exact signature, and its examples are real plugins."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from lmrl import Advantages, Loss, OptimizerSettings, OptimizerSpec, PolicyOptimizer, RLTrainer
from lmrl.plugins import PluginManager, hookspecs
from lmrl.plugins import specs as records
from lmrl.plugins.checks import HOOKS


@pytest.fixture(scope="module")
def page(root) -> str:
    return (root / "docs" / "hooks.md").read_text(encoding="utf-8")


def specs() -> dict[str, str]:
    """Return every specification's signature as it stands in the source."""
    functions = inspect.getmembers(hookspecs, inspect.isfunction)
    marked = {name: function for name, function in functions if hasattr(function, "lmrl_spec")}
    return {name: f"{name}{inspect.signature(function)}".replace("'", "") for name, function in marked.items()}


def test_every_specification_is_a_hook_of_the_manager():
    assert set(specs()) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_a_heading_and_its_exact_signature(name, page):
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"docs/hooks.md has no heading '### {name}'"
    assert f"`{specs()[name]}`" in section[1], f"docs/hooks.md should hold `{specs()[name]}`"
    assert "```python" in section[1], f"docs/hooks.md has no example of {name}"


def test_every_build_is_documented_with_the_arguments_of_its_record(page):
    documented = re.findall(r"``(build\(.*?\))``", " ".join(str(one.__doc__) for one in vars(records).values()))
    assert len(documented) >= 5
    for call in documented:
        assert f"`{call}`" in page, f"docs/hooks.md should hold `{call}`"


def test_no_other_hook_is_documented(page):
    assert set(re.findall(r"^### (lmrl_\w+)$", page, re.MULTILINE)) == set(HOOKS)


def test_the_examples_load_as_plugins(page, tmp_path):
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    files = []
    for number, body in enumerate(examples):
        files.append(tmp_path / f"example_{number}.py")
        files[-1].write_text(body, encoding="utf-8")
    assert len(files) >= len(HOOKS)
    PluginManager(files, entry_points=[], strict=True)


RETURNED = {
    "advantages": lambda rollout: Advantages(rollout.rewards),
    "after_step": lambda policy: None,
    "further_requests": lambda group: [],
    "heads": lambda width, actions: {},
    "informative": lambda scores, group: torch.ones_like(group, dtype=torch.bool),
    "load_state_dict": lambda state: None,
    "loss": lambda policy, batch: Loss(-batch.advantages * policy.evaluate(batch).logprobs),
    "models": dict,
    "parameter_groups": lambda heads: (),
    "processor": lambda model, spec, autocast: None,
    "sampled_head": lambda lm_head: lm_head,
    "should_stop": lambda metrics: False,
    "state_dict": dict,
    "statistics": lambda policy, batch: {},
    "step": lambda minibatch: {},
}
"""A function for each method of an optimizer that samples; ``pairs`` takes the place of ``advantages``."""


def test_the_trainer_calls_the_methods_in_the_order_of_the_page(page, tmp_path):
    calls = []

    def recorded(name):
        return lambda self, *arguments: calls.append(name) or RETURNED[name](*arguments)

    optimizer = type("Recorded", (PolicyOptimizer,), {name: recorded(name) for name in RETURNED})
    spec = OptimizerSpec("recorded", optimizer, OptimizerSettings)
    sizes = {"prompts_per_update": 2, "group_size": 1, "max_new_tokens": 4, "device": "cpu"}
    with RLTrainer(
        optimizer=spec, prompts=["One", "Two"], reward=lambda prompts, responses: [1.0, 0.0], **sizes
    ) as trainer:
        made = set(calls)
        calls.clear()
        trainer.step()
        trainer.restore(trainer.save(tmp_path / "checkpoint"))
    table = re.search(r"^\| moment \| calls \|\n\|---\|---\|\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)[1]
    first, *rows = [[name for name in re.findall(r"`(\w+)`", row) if name in RETURNED] for row in table.splitlines()]
    assert set(first) == made
    assert [name for row in rows for name in row] == list(dict.fromkeys(calls))
    assert made | set(calls) == set(RETURNED)
