"""Training on an exact problem with the trainer's own update: all that differs from a run is how responses are drawn.

They come from the enumerated distribution instead of a decode engine, so that a whole study takes seconds and every
point of its curves is exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from lmrl.algorithms.experience import Experience
from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.optimizer import OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.rollout import Rollout
from lmrl.errors import SettingsError
from lmrl.plugins.specs import OptimizerSpec
from lmrl.seeds import derive_seed
from lmrl.testing.exact import ExactMeasures, ExactProblem, PolicyTable
from lmrl.testing.exact_models import ExactModels
from lmrl.testing.exact_policy import EnumeratedPolicy, EnumeratedSupport
from lmrl.testing.exact_rollouts import draw_demonstrations, draw_labelled, draw_pairs, draw_trajectories, make_rollout
from lmrl.training.adamw import policy_adamw
from lmrl.training.devices import make_accelerator
from lmrl.training.schedule import learning_rate_factor
from lmrl.training.settings import RunSettings
from lmrl.training.trainer import Drawn, Trainer
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings


@dataclass
class ExactCurve:
    """Exact measures of a policy over the updates of its training."""

    updates: list[int] = field(default_factory=list)
    """Numbers of updates, the first of them 0."""
    measures: list[ExactMeasures] = field(default_factory=list)
    """Measures after each of these numbers of updates."""
    seconds: float = 0.0
    """Time that the training took."""

    @property
    def last(self) -> ExactMeasures:
        """Measures at the end of training."""
        return self.measures[-1]

    def column(self, name: str) -> list[float]:
        """Return one measure over the updates: objective, reward, kl, total_variation or gap_closed."""
        return [getattr(measures, name) for measures in self.measures]


class ExactTrainer(Trainer):
    """Trains a policy on an ``ExactProblem``; ``policy`` is the model as it stands.

    ``train`` is the RL stage's own section: ``updates``, ``prompts_per_update`` (groups) times ``group_size`` rows for
    each, learning rate, schedule, limit of the gradient's norm, and so on. ``kl`` says the coefficient and where it
    goes. An optimizer's defaults apply where ``settings`` are not given. The same seed gives the same curve.

    It is its own source of experience: to let optimizers learn from something else, override ``experience``.

    Raises ``SettingsError`` for an optimizer that this cannot serve.
    """

    def __init__(
        self,
        problem: ExactProblem,
        spec: OptimizerSpec,
        settings: OptimizerSettings | None = None,
        *,
        kl: KLSettings | None = None,
        train: TrainSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.problem, self.spec, self.seed = problem, spec, seed
        self.kl, self.train = kl or KLSettings(), train or TrainSettings()
        needs = spec.needs
        if self.kl.controller != "fixed":
            raise SettingsError("kl.controller is adaptive; expected fixed: a moving beta has no one optimum")
        if self.train.group_size < needs.minimum_group_size:
            raise SettingsError(
                f"train.group_size is {self.train.group_size}; {spec.name} needs at least {needs.minimum_group_size}"
            )
        critic = self.train.separate_critic or needs.values == "separate"
        torch_seed = derive_seed(seed, "torch")
        self.optimizer: PolicyOptimizer = spec.build(settings or spec.settings())
        self.policy = problem.policy(bool(needs.values), critic, self.optimizer, seed=torch_seed)
        processor = self.optimizer.processor(self.policy.model, problem.spec, nullcontext)
        self.support = None if processor is None else EnumeratedSupport(problem, processor)
        accelerator = make_accelerator(RunSettings(device="cpu", precision="no"))
        adamw = policy_adamw(self.policy.trainable(), self.train)
        module, torch_optimizer = accelerator.prepare(self.policy, adamw)
        self.models = ExactModels(problem, self.optimizer, needs, self.kl.beta)
        heads = self.optimizer.defines("heads")
        face = EnumeratedPolicy(problem, module, needs, self.support, heads, self.models.references)
        updater = Updater(
            self.optimizer,
            face,
            self.train,
            kl=self.kl,
            needs=needs,
            accelerator=accelerator,
            torch_optimizer=torch_optimizer,
            seed=seed,
        )
        super().__init__(self, updater)
        self._table: PolicyTable | None = None

    @property
    def table(self) -> PolicyTable:
        """The policy that is sampled, on all responses: within the processor's support, with the optimizer's head."""
        if self._table is None:
            with torch.no_grad(), self.policy.extracted():
                self._table = self.problem.table(self.policy, None if self.support is None else self.support.sets)
        return self._table

    def measure(self) -> ExactMeasures:
        """Return where the policy stands."""
        return self.problem.measure(self.table, self.kl.beta)

    def next(self, updates: int) -> Drawn:
        """Draw the data of the next update."""
        return Drawn(self.experience(torch.Generator().manual_seed(derive_seed(self.seed, "draws", updates + 1))))

    def step(self) -> dict[str, float]:
        """Sample the next update's experience, learn from it once, and return the metrics."""
        metrics = super().step()
        self._table = None
        if self.support is not None:
            self.support.after_update(self.updates, self.policy.model)
        return metrics

    def experience(self, generator: torch.Generator) -> Rollout | Experience:
        """Return what the optimizer learns from in this update, by ``spec.needs.experience``.

        Rollouts are drawn from the policy, everything else from the reference: as many answers, so half as many pairs.
        Raises ``SettingsError`` for other kinds.
        """
        kind = self.spec.needs.experience
        if kind == "rollouts":
            return self.rollout(generator)
        draws: dict[str, Callable[..., Experience]] = {
            "preferences": draw_pairs,
            "labelled": draw_labelled,
            "trajectories": draw_trajectories,
            "demonstrations": draw_demonstrations,
        }
        if kind not in draws:
            raise SettingsError(
                f"{self.spec.name} learns from {kind!r}; expected rollouts, {', '.join(draws)}, or an experience() of "
                "your own"
            )
        draw, size = draws[kind], self.train.group_size
        prompts = self.prompts().repeat_interleave(max(1, size // 2) if kind == "preferences" else size)
        return draw(self.problem, prompts, generator, self.spec.needs)

    def prompts(self) -> torch.Tensor:
        """Return the prompt of each group of this update, in turn over all updates, (prompts_per_update,)."""
        count = self.train.prompts_per_update
        return (torch.arange(count) + self.updates * count) % len(self.problem.prompts)

    def rollout(self, generator: torch.Generator) -> Rollout:
        """Sample this update's groups from the policy; uninformative groups are sampled again, as in the RL stage."""
        size = self.train.group_size
        distribution = self.table.log_probabilities
        prompts = self.prompts().repeat_interleave(size)
        group = torch.arange(self.train.prompts_per_update).repeat_interleave(size)
        rows = self.problem.draw(distribution, prompts, generator)
        for _ in range(self.train.resamples if self.optimizer.defines("informative") else 0):
            useful = self.optimizer.informative(self.problem.rewards[rows].float(), group)
            again = torch.isin(group, group[~useful])
            if not again.any():
                break
            rows[again] = self.problem.draw(distribution, prompts[again], generator)
        drawn = [self.problem.draw(one, self.prompts(), generator)[group] for one in self.models.further(self.table)]
        further = torch.stack(drawn, dim=1) if drawn else None
        return make_rollout(self.problem, self.table, rows, group, self.kl, self.spec.needs, further)

    def run(self, every: int = 1) -> ExactCurve:
        """Take the updates that are left, measuring after each ``every``-th and the last."""
        start, curve = time.perf_counter(), ExactCurve([self.updates], [self.measure()])
        while self.updates < self.train.updates:
            self.step()
            if self.updates % every == 0 or self.updates == self.train.updates:
                curve.updates.append(self.updates)
                curve.measures.append(self.measure())
        curve.seconds = time.perf_counter() - start
        return curve


def train_exactly(
    problem: ExactProblem,
    spec: OptimizerSpec,
    settings: OptimizerSettings | None = None,
    *,
    kl: KLSettings | None = None,
    train: TrainSettings | None = None,
    seed: int = 0,
    every: int = 1,
) -> ExactCurve:
    """Train a policy as ``ExactTrainer`` does and return its exact curve."""
    return ExactTrainer(problem, spec, settings, kl=kl, train=train, seed=seed).run(every)


def ascend_exactly(
    problem: ExactProblem, *, beta: float, updates: int = 500, learning_rate: float = 3e-3, every: int = 10
) -> ExactCurve:
    """Climb J itself with its exact gradient, Adam and a linear schedule: the curve that samplers are compared with.

    Where it ends short of a gap closed of 1, the model cannot represent the optimum, or a local one caught it.
    """
    train = TrainSettings(updates=updates, learning_rate=learning_rate, schedule="linear")
    policy = problem.policy()
    torch_optimizer = policy_adamw(policy.trainable(), train)
    start, curve = time.perf_counter(), ExactCurve([0], [problem.measure(policy, beta)])
    for update in range(1, updates + 1):
        for group in torch_optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(update, train)
        torch_optimizer.zero_grad()
        (-problem.objective(policy, beta)).backward()
        torch_optimizer.step()
        if update % every == 0 or update == updates:
            curve.updates.append(update)
            curve.measures.append(problem.measure(policy, beta))
    curve.seconds = time.perf_counter() - start
    return curve
