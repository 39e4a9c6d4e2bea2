"""The expected update of an optimizer: what its gradient is on average, by enumeration instead of sampling."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.beside import no_such_model
from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.optimizer import OptimizerSettings, PolicyOptimizer
from lmrl.engines import SamplingSpec
from lmrl.errors import SettingsError
from lmrl.models import PolicyModel
from lmrl.models.policy import StateOutputs
from lmrl.models.text_policy import OtherPolicy, TextEvaluation
from lmrl.plugins.specs import Needs, OptimizerSpec
from lmrl.testing.exact import ExactProblem, PolicyTable, flatten, policy_parameters
from lmrl.testing.exact_models import ExactModels
from lmrl.testing.exact_rollouts import make_rollout
from lmrl.training.devices import make_accelerator
from lmrl.training.policy import LocalPolicy
from lmrl.training.settings import RunSettings
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings

MOST_DRAWS = 200_000
"""Expectations over more groups than this are refused."""


def expected_update(
    optimizer: OptimizerSpec | PolicyOptimizer,
    problem: ExactProblem,
    *,
    settings: OptimizerSettings | None = None,
    policy: PolicyModel | None = None,
    group_size: int = 1,
    kl: KLSettings | None = None,
    state: Mapping[str, Any] | None = None,
) -> Tensor:
    """Return minus the expected gradient of the loss in a policy's first step, flat over ``policy_parameters``, (P,).

    One draw is one prompt with ``group_size`` independent responses; all tuples are enumerated. Each becomes a rollout
    of its own, from which the trainer's ``Updater`` computes advantages, losses, the KL in the loss and their average,
    and differentiates; gradients are weighted by the tuple's probability and averaged over prompts. Whatever the
    optimizer computes over a batch (whitening, say) it computes over one group here.

    ``optimizer`` is a spec, built with ``settings`` or its defaults, or an instance, which is copied; every draw meets
    a new one, in the given ``state`` (its ``state_dict``). Epochs, minibatches and a step of the optimizer's own
    (``PolicyOptimizer.step``) are left out: this is the gradient that they start from. So are drawing uninformative
    groups anew and the limit on the gradient's norm. ``policy`` is the problem's starting point if not given.

    Raises ``SettingsError`` for an optimizer that learns from something else, or too many draws.
    """
    kl = kl or KLSettings(beta=0.0)
    build, needs = _builder(optimizer, settings, policy)
    if needs.experience != "rollouts":
        raise SettingsError(f"the optimizer learns from {needs.experience}; expected one that learns from rollouts")
    if any(build().defines(method) for method in ("processor", "heads")):
        raise SettingsError(
            "the optimizer has a logits processor or heads, which one table of logits and values does not have; "
            "expected one that draws from the policy itself"
        )
    policy = policy or problem.policy(bool(needs.values), needs.values == "separate")
    with torch.enable_grad():
        table = problem.table(policy)
    models = ExactModels(problem, build(), needs, kl.beta)
    further = models.further(table)
    reached = prod(int((one > -torch.inf).sum()) // len(problem.prompts) for one in further)
    draws = len(problem.prompts) * problem.responses_per_prompt**group_size * reached
    if draws > MOST_DRAWS:
        less = "take a smaller vocabulary, fewer tokens or smaller groups"
        raise SettingsError(f"there are {draws} groups of {group_size}; expected at most {MOST_DRAWS}: {less}")
    face = _TablePolicy(table, problem.spec, models)
    recorder = _Recorder(face.leaves)
    accelerator = make_accelerator(RunSettings(device="cpu", precision="no"))
    train = TrainSettings(max_gradient_norm=0.0, microbatch_tokens=2**31)
    for rows, beside, weight in _draws(problem, table, group_size, further):
        recorder.weight = weight
        method = build()
        if state is not None:
            method.load_state_dict(state)
        rollout = make_rollout(problem, table, rows, torch.zeros_like(rows), kl, needs, beside)
        updater = Updater(method, face, train, kl=kl, needs=needs, accelerator=accelerator, torch_optimizer=recorder)
        updater.learn(rollout, update=1, seed=0)
    roots = [root for root in (table.logits, table.values) if root is not None]
    sums = [total.to(root.dtype) for total, root in zip(recorder.sums, roots, strict=True)]
    gradients = torch.autograd.grad(roots, policy_parameters(policy), sums, materialize_grads=True)
    return -flatten(gradients)


def _builder(
    optimizer: OptimizerSpec | PolicyOptimizer, settings: OptimizerSettings | None, policy: PolicyModel | None
) -> tuple[Callable[[], PolicyOptimizer], Needs]:
    """Return what makes a new optimizer of one epoch and one minibatch, and what it needs."""
    if isinstance(optimizer, OptimizerSpec):
        spec, once = optimizer, replace(settings or optimizer.settings(), epochs=1, minibatches=1)
        return lambda: _without_step(spec.build(once)), spec.needs
    given = optimizer
    has_values = policy is not None and policy.value_head is not None

    def build() -> PolicyOptimizer:
        twin = copy.deepcopy(given)
        twin.settings = replace(settings or given.settings, epochs=1, minibatches=1)
        return _without_step(twin)

    return build, Needs(values=has_values, reference=True)


def _without_step(optimizer: PolicyOptimizer) -> PolicyOptimizer:
    """Take away an optimizer's own step: what is recorded is the gradient that it would begin with."""
    if optimizer.defines("step"):
        kind = type(optimizer)
        optimizer.__class__ = type(kind.__name__, (kind,), {"step": PolicyOptimizer.step})
    return optimizer


def _draws(
    problem: ExactProblem, table: PolicyTable, group_size: int, further: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor | None, float]]:
    """Yield the places of every group's responses, those to its further requests, and the probability of both."""
    probabilities = [table.log_probabilities.detach().exp()] * group_size + [one.exp() for one in further]
    size, device = problem.responses_per_prompt, problem.rewards.device
    for prompt in range(len(problem.prompts)):
        choices = [
            [(place, share) for place, share in enumerate(one.tolist()) if place // size == prompt and share > 0]
            for one in probabilities
        ]
        for drawn in itertools.product(*choices):
            weight = prod(share for _, share in drawn) / len(problem.prompts)
            places = torch.tensor([place for place, _ in drawn], device=device)
            beside = places[group_size:].expand(group_size, -1) if further else None
            yield places[:group_size], beside, weight


class _TablePolicy(LocalPolicy):
    """An ``lmrl.algorithms.optimizer.Policy`` that reads a table whose logits and values are leaves of the graph.

    By the chain rule one backward pass through the model, with the gradients that the leaves have gathered over all
    draws, does the work of one for each draw.
    """

    def __init__(self, table: PolicyTable, spec: SamplingSpec, models: ExactModels) -> None:
        self.models = models
        self.logits = table.logits.detach().requires_grad_()
        self.values = None if table.values is None else table.values.detach().requires_grad_()
        self.leaves = [leaf for leaf in (self.logits, self.values) if leaf is not None]
        self.spec = spec

    def evaluate(self, batch: Any) -> TextEvaluation:
        """Return the policy on responses of the enumeration."""
        rows, mask = batch.inputs.rows, batch.action_mask
        values = None if self.values is None else self.values[rows][mask]
        outputs = StateOutputs(self.logits[rows][mask], values)
        counted = mask[batch.inputs.action_mask(mask.shape[1])]  # rows of a tie count for nothing
        return TextEvaluation(outputs, batch.inputs.actions[counted], mask, self.spec)

    def other(self, name: str) -> OtherPolicy:
        """Return a model beside the policy."""
        if name not in self.models.references:
            raise no_such_model(name, self.models.references)
        return OtherPolicy(self.models.references[name], self.spec)


class _Recorder(torch.optim.Optimizer):
    """Adds up weighted gradients, in float64, where an optimizer of torch would step."""

    def __init__(self, leaves: list[Tensor]) -> None:
        super().__init__(leaves, {"lr": 1.0})
        self.leaves = leaves
        self.sums = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves]
        self.weight = 1.0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Add ``weight`` times the leaves' gradients to ``sums``."""
        for leaf, total in zip(self.leaves, self.sums, strict=True):
            if leaf.grad is not None:
                total.add_(leaf.grad, alpha=self.weight)
