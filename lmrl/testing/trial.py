"""One optimizer under test: built, given toy experience, and driven by the trainer's own ``Updater``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lmrl import engines
from lmrl.algorithms.beside import REFERENCE, NamedModel
from lmrl.algorithms.experience import DemonstrationBatch, PairBatch, TrajectoryBatch
from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.optimizer import OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.rollout import Batch, Rollout
from lmrl.engines import SamplingSpec
from lmrl.plugins.specs import OptimizerSpec
from lmrl.testing.thread_ranks import ThreadAccelerator, run_ranks
from lmrl.testing.toy_experience import EVERYTHING, EXPERIENCES, Request
from lmrl.testing.toy_policy import VOCABULARY, WIDTH, ToyModel, ToyPolicy, make_expert
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings

GROUP_SIZE = 4
TOLERANCE = 2e-3
"""Two gradients are one if they differ by less than this share of the largest entry; sums in another order do."""
OWN_STEP_TOLERANCE = 5e-2
"""The same for the change of the parameters in a step of the optimizer's own, which may solve equations on the way."""


@dataclass(frozen=True)
class TrialResult:
    """Result of one update: the actor's and the critic's gradients (or the change in a step of the optimizer's own)."""

    gradients: dict[str, Tensor]
    metrics: dict[str, float]

    @property
    def actor_norm(self) -> float:
        """The largest entry of the actor's gradient."""
        return max(
            (float(g.abs().max()) for name, g in self.gradients.items() if name.startswith("actor")), default=0.0
        )

    @property
    def is_finite(self) -> bool:
        """True if there is neither NaN nor infinity in any gradient."""
        return all(bool(torch.isfinite(gradient).all()) for gradient in self.gradients.values())


class Trial:
    """An optimizer with its settings cut down to one step per update, and toy experience of its kind."""

    def __init__(self, spec: OptimizerSpec, settings: Any = None) -> None:
        self.spec = spec
        self.full_settings = spec.settings() if settings is None else settings
        self.settings = self.full_settings
        if isinstance(self.full_settings, OptimizerSettings):
            self.settings = dataclasses.replace(self.full_settings, epochs=1, minibatches=1)
        self.group_size = max(GROUP_SIZE, spec.needs.minimum_group_size)
        self.sampling_policy = ToyModel(seed=1)
        self.reference = self.sampling_policy.moved(0.1, seed=3)

    @cached_property
    def has_own_step(self) -> bool:
        """True if the optimizer moves the parameters itself."""
        return self.build().defines("step")

    @cached_property
    def further(self) -> tuple[str, ...]:
        """The model of each further request beside those of a group."""
        requests = self.build().further_requests([engines.Request([0], SamplingSpec(), seed=0)] * self.group_size)
        return tuple(request.model for request in requests)

    def others(self, supplied: frozenset[str] = EVERYTHING) -> dict[str, ToyModel]:
        """Return the models beside the policy: those with a path know the right answers, the rest are near its start.

        A mixture is drawn as the reference is.
        """
        has_reference = "reference" in supplied
        found = {REFERENCE: self.reference} if has_reference else {}
        for name, one in self.build().models().items():
            if isinstance(one, NamedModel):
                found[name] = make_expert() if one.path is not None else self.sampling_policy.moved(0.1, seed=4)
            elif has_reference or REFERENCE not in one.weights:
                found[name] = self.reference
        return found

    @cached_property
    def policy(self) -> ToyModel:
        """The current policy: off the sampling policy, so that ratios are not 1 and clipping shows.

        A step of the optimizer's own may refuse to go further away, so there it is the sampling policy.
        """
        return self.sampling_policy.moved(0.0 if self.has_own_step else 0.3, seed=2)

    def build(self, full: bool = False) -> PolicyOptimizer:
        """Return a new optimizer; with ``full`` it keeps its epochs and minibatches."""
        optimizer: PolicyOptimizer = self.spec.build(self.full_settings if full else self.settings)
        return optimizer

    def toy_policy(
        self, optimizer: PolicyOptimizer, model: ToyModel | None = None, supplied: frozenset[str] = EVERYTHING
    ) -> ToyPolicy:
        """Return the policy on ``model``, or on a copy of the current one, with heads of the optimizer's, new ones."""
        model = model or self.policy.moved(0.0, seed=0)
        model.heads.update(optimizer.heads(WIDTH, VOCABULARY))
        model.heads.load_state_dict(self.head_state)
        model.sampled_head = optimizer.sampled_head
        return ToyPolicy(model, "values" in supplied, self.others(supplied))

    @cached_property
    def head_state(self) -> dict[str, Tensor]:
        """The start of the optimizer's heads, the same in every update and on every rank."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.ModuleDict(self.build().heads(WIDTH, VOCABULARY)).state_dict()

    def experience(self, seed: int = 0, **changes: Any) -> Any:
        """Return what the updater is given; ``changes`` are fields of ``Request``."""
        model = changes.pop("model", self.sampling_policy)
        changes.setdefault("group_size", self.group_size)
        changes.setdefault("further", self.further)
        changes.setdefault("others", self.others(changes.get("supplied", EVERYTHING)))
        return EXPERIENCES[self.spec.needs.experience](Request(model, self.reference, seed, **changes))

    def batch(self, optimizer: PolicyOptimizer, data: Any) -> Any:
        """Return what ``loss`` is given: of a rollout, its batch or its pairs."""
        if not isinstance(data, Rollout):
            return data
        if optimizer.defines("pairs"):
            return optimizer.pairs(data)
        with torch.no_grad():
            return Batch.from_rollout(data, optimizer.advantages(data))

    def update(
        self,
        data: Any,
        optimizer: PolicyOptimizer | None = None,
        *,
        model: ToyModel | None = None,
        microbatch: int = 1_000_000,
        accelerator: ThreadAccelerator | None = None,
        supplied: frozenset[str] = EVERYTHING,
    ) -> TrialResult:
        """Take one step from a copy of the current policy (or of ``model``) and return what it did."""
        optimizer = optimizer or self.build()
        # A step that is left out would make any two gradients equal.
        optimizer.should_stop = lambda metrics: False  # type: ignore[method-assign]
        model = (model or self.policy).moved(0.0, seed=0)
        policy = self.toy_policy(optimizer, model, supplied)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        stepper = _Recorder(model)
        settings = TrainSettings(max_gradient_norm=0, microbatch_tokens=microbatch)
        updater = self.updater(optimizer, policy, settings, stepper, accelerator)
        with torch.random.fork_rng(devices=[]):
            if updater.accelerator.num_processes == 1:
                torch.manual_seed(0)
            metrics = learn(updater, data, update=1)
        if optimizer.defines("step"):
            gradients = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
        else:
            gradients = stepper.gradients
        return TrialResult(gradients, metrics)

    def updater(
        self,
        optimizer: PolicyOptimizer,
        policy: ToyPolicy,
        settings: TrainSettings,
        torch_optimizer: torch.optim.Optimizer,
        accelerator: ThreadAccelerator | None = None,
    ) -> Updater:
        """Return the trainer's updater without a KL, in this process unless ``accelerator`` is of several ranks."""
        return Updater(
            optimizer,
            policy,
            settings,
            kl=KLSettings(beta=0),
            needs=self.spec.needs,
            accelerator=accelerator or ThreadAccelerator(),
            torch_optimizer=torch_optimizer,
        )

    def update_over_ranks(self, shares: Sequence[Any]) -> TrialResult:
        """Take the same step with each rank holding its share of the experience."""

        def work(accelerator: ThreadAccelerator, rank: int) -> TrialResult:
            return self.update(shares[rank], accelerator=accelerator)

        _ = self.head_state  # made here: the ranks are threads with one random number generator
        return run_ranks(work, len(shares))[0]

    def difference(self, one: TrialResult, other: TrialResult) -> float:
        """Return the largest difference of two updates as a share of the largest entry; 0 where it is rounding."""
        scale = max((float(gradient.abs().max()) for gradient in one.gradients.values()), default=0.0)
        found = max(
            (float((gradient - other.gradients[name]).abs().max()) for name, gradient in one.gradients.items()),
            default=0.0,
        )
        if math.isnan(found) or math.isnan(scale):
            return math.inf
        tolerance = OWN_STEP_TOLERANCE if self.has_own_step else TOLERANCE
        share = found / max(scale, 1e-6)
        return share if share > tolerance else 0.0


def learn(updater: Updater, data: Any, update: int, seed: int = 0) -> dict[str, float]:
    """Hand experience to the updater as a trainer does, and return its metrics under their own names."""
    metrics = updater.learn(data, update=update, seed=seed)
    return {name.removeprefix("optimizer/"): value for name, value in metrics.items()}


def parameter_groups(model: ToyModel, learning_rate: float) -> list[dict[str, Any]]:
    """Return groups as ``policy_adamw`` makes them."""
    return [
        {"params": list(model.actor.parameters()), "lr": learning_rate, "role": "policy"},
        {
            "params": [*model.critic.parameters(), *(one for one in model.heads.parameters() if one.requires_grad)],
            "lr": learning_rate,
            "role": "value",
        },
    ]


def mask_rows(batch: Any, kept: Tensor) -> Any:
    """Return what ``loss`` is given with the mask all false in the rows where ``kept`` (B,) is false."""
    if isinstance(batch, Batch):
        rollout = dataclasses.replace(batch.rollout, action_mask=batch.action_mask & kept[:, None])
        return dataclasses.replace(batch, rollout=rollout)
    if isinstance(batch, PairBatch):
        return dataclasses.replace(batch, chosen=batch.chosen.masked(kept), rejected=batch.rejected.masked(kept))
    if isinstance(batch, DemonstrationBatch | TrajectoryBatch):
        return dataclasses.replace(batch, responses=batch.responses.masked(kept))
    return dataclasses.replace(batch, responses=batch.responses.masked(kept), mismatched=batch.mismatched.masked(kept))


class _Recorder(torch.optim.SGD):
    """Keeps the gradients of its last step and moves nothing."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__(parameter_groups(model, 0.0), lr=0.0)
        self.named = list(model.named_parameters())
        self.gradients: dict[str, Tensor] = {name: torch.zeros_like(parameter) for name, parameter in self.named}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for name, parameter in self.named:
            if parameter.grad is not None:
                self.gradients[name] = parameter.grad.detach().clone()
