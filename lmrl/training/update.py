"""One update of the policy from one rollout: advantages, minibatches, aggregated losses, steps.

Losses are averaged here and nowhere else, with the token and row counts of the whole minibatch over all ranks, so
microbatches and ranks change no gradient.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmrl.algorithms.experience import Experience
from lmrl.algorithms.kl import KLController, KLSettings, kl_losses
from lmrl.algorithms.ops import aggregate_losses, masked_sum
from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.rollout import Batch, Rollout, loss_mask
from lmrl.algorithms.sequences import split_groups
from lmrl.errors import NonFiniteError, SettingsError
from lmrl.plugins.specs import Needs
from lmrl.seeds import derive_seed
from lmrl.training.adamw import policy_adamw
from lmrl.training.devices import make_accelerator
from lmrl.training.memory import microbatch_budget
from lmrl.training.minibatch import WholeMinibatch
from lmrl.training.over_ranks import advantages_over_ranks
from lmrl.training.policy import TrainablePolicy
from lmrl.training.proximal import importance_weights
from lmrl.training.schedule import GroupRates
from lmrl.training.settings import RunSettings
from lmrl.training.update_settings import TrainSettings

if TYPE_CHECKING:
    from lmrl.training.auxiliary import Auxiliary

logger = logging.getLogger(__name__)
OPTIONAL = ("pairs", "statistics", "step", "after_step", "should_stop")
"""Methods of ``PolicyOptimizer`` that are called where an optimizer writes them."""


@dataclass
class MetricMeans:
    """Sums and counts of metric columns; their quotient is the mean over all tokens or rows, whatever the split."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, column: Tensor, mask: Tensor) -> None:
        """Add a (B, T) or (B,) column; entries outside the mask count for nothing."""
        column = column.detach().float()
        within = mask if column.ndim == 2 else mask.any(1)
        self.add_sum(name, masked_sum(column, within), within.sum())

    def add_sum(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add a sum over ``count`` entries."""
        zero = torch.zeros((), device=total.device)
        self.sums[name] = self.sums.get(name, zero) + total
        self.counts[name] = self.counts.get(name, zero) + count

    def merge(self, other: MetricMeans) -> None:
        """Add everything that ``other`` holds."""
        for name, total in other.sums.items():
            self.add_sum(name, total, other.counts[name])

    def totals(self, accelerator: Any) -> dict[str, tuple[float, float]]:
        """Return sum and count of each metric over all ranks (one collective, one transfer to the host)."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        stacked = torch.stack([torch.stack([self.sums[name], self.counts[name]]) for name in names])
        stacked = accelerator.reduce(stacked, reduction="sum")
        return {name: (total, count) for name, (total, count) in zip(names, stacked.tolist(), strict=True)}

    def means(self, accelerator: Any) -> dict[str, float]:
        """Return the means over all ranks, 0 for a metric of no entries."""
        totals = self.totals(accelerator)
        return {name: float(total / max(count, 1)) for name, (total, count) in totals.items()}


class Updater:
    """Applies a policy optimizer to experience: credit, minibatches, aggregated losses, optimizer steps.

    ``policy`` is a ``lmrl.training.policy.TrainablePolicy``. ``needs`` are those of the optimizer's spec. Without
    ``accelerator`` this process learns alone on the CPU; without ``torch_optimizer`` AdamW moves what
    ``policy.trainable`` returns. ``token_budget`` is the number of tokens per forward and backward pass. ``seed``
    shuffles minibatches and is the same on every rank. ``auxiliary`` adds the gradient of a second stream of data to
    every step.
    """

    def __init__(
        self,
        optimizer: PolicyOptimizer,
        policy: TrainablePolicy,
        settings: TrainSettings | None = None,
        *,
        kl: KLSettings | None = None,
        needs: Needs | None = None,
        accelerator: Any = None,
        torch_optimizer: torch.optim.Optimizer | None = None,
        token_budget: int | None = None,
        seed: int = 0,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        self.optimizer, self.policy, self.settings = optimizer, policy, settings or TrainSettings()
        self.controller = KLController(kl or KLSettings())
        self.needs, self.seed = needs or Needs(), seed
        self.accelerator = accelerator or make_accelerator(RunSettings(device="cpu", precision="no"))
        self.torch_optimizer = torch_optimizer or policy_adamw(policy.trainable(), self.settings)
        self.token_budget = token_budget or microbatch_budget(self.settings, self.accelerator.device)
        self.updates = 0
        """Updates that were made so far."""
        self.rates = GroupRates(self.torch_optimizer, self.settings)
        self.auxiliary = auxiliary
        self._defined = {name for name in OPTIONAL if optimizer.defines(name)}
        if auxiliary is not None and "step" in self._defined:
            raise SettingsError(
                f"{type(optimizer).__name__} moves the policy by a step of its own, which is made for its loss alone, "
                "so no auxiliary gradient can be added; leave auxiliary out, or choose another optimizer"
            )

    def learn(
        self,
        experience: Rollout | Experience,
        *,
        beta: float | None = None,
        update: int | None = None,
        seed: int | None = None,
    ) -> dict[str, float]:
        """Take the optimizer's epochs of minibatches over a rollout, or other experience; return the metrics' means.

        ``beta``, the coefficient of a KL in the loss, is the controller's if not given, ``update`` the next number,
        and ``seed`` derives from the updater's and that number. Raises ``NonFiniteError`` before a step that is not
        finite.
        """
        number = self.updates + 1 if update is None else update
        beta = self.controller.beta if beta is None else beta
        total = MetricMeans()
        batch: Any = self._credited(experience, total) if isinstance(experience, Rollout) else experience
        if number == self.settings.updates + 1 and self.rates.schedule != "constant":
            logger.warning("the %s schedule has ended: train.updates is %d", self.rates.schedule, number - 1)
        rates = self.rates.set(number)
        shuffled = derive_seed(self.seed, "minibatches", number) if seed is None else seed
        steps = self._epochs(batch, beta, torch.Generator().manual_seed(shuffled), total, number)
        self.updates = number
        means = total.means(self.accelerator)
        if "importance_weight_squared" in means:
            squared = means.pop("importance_weight_squared")
            # Kish's effective sample size as a share of the tokens.
            means["effective_sample_share"] = means["importance_weight"] ** 2 / squared if squared else 0.0
        metrics = {f"optimizer/{name}": value for name, value in means.items()}
        if self.auxiliary is not None:
            metrics |= self.auxiliary.metrics(self.accelerator)
        return metrics | {"optimizer/steps": float(steps), **rates}

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state, without the policy's weights."""
        beside = {} if self.auxiliary is None else {"auxiliary": self.auxiliary.state_dict()}
        return beside | {
            "update": self.updates,
            "updates": self.settings.updates,
            "torch_optimizer": self.torch_optimizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "controller": self.controller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.updates = int(state["update"])
        self.torch_optimizer.load_state_dict(state["torch_optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.controller.load_state_dict(state["controller"])
        if self.auxiliary is not None and "auxiliary" in state:
            self.auxiliary.load_state_dict(state["auxiliary"])

    def _credited(self, rollout: Rollout, total: MetricMeans) -> Experience:
        """Return what ``loss`` is given of a rollout: its pairs, or a batch with advantages."""
        if "pairs" in self._defined:
            return self.optimizer.pairs(rollout)
        if self.accelerator.num_processes == 1:
            advantages = self.optimizer.advantages(rollout)
        else:
            advantages = advantages_over_ranks(self.optimizer, rollout, self.accelerator)
        batch = Batch.from_rollout(rollout, advantages)
        if rollout.proximal_logprobs is not rollout.sampler_logprobs:
            batch = self._corrected(batch, total)
        for name, column in advantages.metrics.items():
            total.add(name, column, batch.loss_mask)
        total.add("advantage", batch.advantages, batch.loss_mask)
        return batch

    def _corrected(self, batch: Batch, total: MetricMeans) -> Batch:
        """Return the batch with advantages that are weighted for samples of another distribution, unless opted out."""
        cap, level = self.settings.importance_cap, self.settings.importance_level
        weights = importance_weights(batch.proximal_logprobs, batch.sampler_logprobs, batch.loss_mask, cap, level)
        total.add("importance_weight", weights, batch.loss_mask)
        total.add("importance_weight_squared", weights.square(), batch.loss_mask)
        return replace(batch, advantages=batch.advantages * weights) if self.needs.importance else batch

    def _epochs(
        self, batch: Experience, beta: float, generator: torch.Generator, total: MetricMeans, update: int
    ) -> int:
        """Step over every minibatch of every epoch, or until the optimizer stops; return the number of steps."""
        steps, settings = 0, self.optimizer.settings
        for epoch in range(settings.epochs):
            for number, rows in enumerate(minibatch_rows(batch, settings.minibatches, generator)):
                where = f"update {update}, epoch {epoch + 1}, minibatch {number + 1}"
                if self._step(batch.select(rows), beta, epoch, where, total):
                    return steps
                steps += 1
        return steps

    def _step(self, minibatch: Experience, beta: float, epoch: int, where: str, total: MetricMeans) -> bool:
        """Take one gradient step; return True if the optimizer asked to stop before it."""
        accelerator = self.accelerator
        mask = loss_mask(minibatch)
        counts = accelerator.reduce(torch.stack([mask.sum(), mask.any(1).sum()]).float(), reduction="sum")
        token_count, row_count = counts.clamp_min(1).unbind()
        means = MetricMeans()
        loss_sum = torch.zeros((), device=mask.device)
        self.torch_optimizer.zero_grad(set_to_none=True)
        if self.auxiliary is not None:  # first, because ranks exchange gradients in the last backward pass
            self.auxiliary.backward(accelerator, where)
        microbatches = self._microbatches(minibatch)
        if "statistics" in self._defined:
            minibatch = with_statistics(self.optimizer, self.policy, minibatch, microbatches, accelerator)
        for index, rows in enumerate(microbatches):
            last = index == len(microbatches) - 1
            with nullcontext() if last else self.policy.no_sync():
                share = self._loss(minibatch.select(rows), beta, token_count, row_count, means)
                # Data-parallel wrappers average gradients over ranks; the counts are global, so undo the division.
                accelerator.backward(share * accelerator.num_processes)
            self.policy.forget()
            loss_sum += share.detach()
        if "should_stop" in self._defined and self.optimizer.should_stop(means.means(accelerator)):
            self.torch_optimizer.zero_grad(set_to_none=True)
            return True
        parameters = self.rates.moving()
        one = torch.ones((), device=mask.device)
        limit = self.settings.max_gradient_norm or math.inf
        norm = accelerator.clip_grad_norm_(parameters, limit)
        loss_sum = accelerator.reduce(loss_sum, reduction="sum")
        loss, norm_value = torch.stack([loss_sum, norm.detach().to(loss_sum)]).tolist()
        require_finite("the loss", loss, where)
        require_finite("the gradient's norm", norm_value, where)
        if "step" in self._defined:

            def share_of_loss(part: Any) -> Tensor:
                return self._loss(part, beta, token_count, row_count, MetricMeans())

            whole = WholeMinibatch(self, minibatch, microbatches, (token_count, row_count), share_of_loss, epoch)
            for name, number in (self.optimizer.step(whole) if whole.parameters else {}).items():
                means.add_sum(name, torch.full_like(one, number), one)
            whole.drop_gradient()
        self.torch_optimizer.step()
        if "after_step" in self._defined:
            self.optimizer.after_step(self.policy)
        means.add_sum("loss", loss_sum, one)
        means.add_sum("gradient_norm", norm.detach().to(loss_sum), one)
        total.merge(means)
        return False

    def _microbatches(self, minibatch: Experience) -> list[Tensor]:
        """Return the rows of each forward and backward pass; whole groups where the optimizer needs them."""
        if self.needs.whole_groups:
            return split_groups(minibatch.group, minibatch.row_lengths, self.token_budget)
        return self.policy.microbatches(minibatch, self.token_budget)

    def _loss(self, part: Any, beta: float, token_count: Tensor, row_count: Tensor, means: MetricMeans) -> Tensor:
        """Return this microbatch's share of the minibatch's loss."""
        loss, mask = self.optimizer.loss(self.policy, part), loss_mask(part)
        aggregation = self.optimizer.settings.loss_aggregation
        share = aggregate_losses(loss.losses, mask, aggregation, token_count, row_count)
        for name, column in loss.metrics.items():
            means.add(name, column, mask)
        if isinstance(part, Batch) and self.controller.settings.placement == "loss" and beta > 0:
            now = self.policy.evaluate(part).logprobs
            reference = part.rollout.reference_logprobs
            penalty = kl_losses(now, part.proximal_logprobs, reference, part.action_mask, self.controller.settings)
            means.add("kl_loss", penalty, mask)
            share = share + beta * aggregate_losses(penalty, mask, aggregation, token_count, row_count)
        return share


@torch.no_grad()
def with_statistics(
    optimizer: PolicyOptimizer, policy: TrainablePolicy, batch: Any, microbatches: list[Tensor], accelerator: Any
) -> Any:
    """Return the batch with the means of the optimizer's statistics over all ranks."""
    means = MetricMeans()
    for rows in microbatches:
        part = batch.select(rows)
        for name, column in optimizer.statistics(policy, part).items():
            means.add(name, column, loss_mask(part))
        policy.forget()
    return replace(batch, means=means.means(accelerator))


def minibatch_rows(batch: Rollout | Experience, minibatches: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of each minibatch of one pass: shuffled by group, so that samples of one prompt stay together."""
    groups = batch.group.unique()
    order = groups[torch.randperm(len(groups), generator=generator).to(groups.device)]
    for chosen in order.tensor_split(min(minibatches, len(groups))):
        yield torch.isin(batch.group, chosen).nonzero().squeeze(1)


def require_finite(name: str, value: float, where: str) -> float:
    """Return ``value``, or raise ``NonFiniteError`` with the step and its cause."""
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{where}: {name} is {value}. The run stops here and its last checkpoint is kept. Lower the learning "
            "rate, raise kl.beta, or look at the reward's range."
        )
    return value
