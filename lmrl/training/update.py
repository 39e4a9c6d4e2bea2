"""One update of the policy from one rollout: advantages, minibatches, aggregated losses, steps.

Losses are averaged here and nowhere else, with the token and row counts of the whole minibatch over all ranks, so
microbatches and ranks change no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.experience import Experience
from lmrl.algorithms.kl import KLSettings, kl_losses
from lmrl.algorithms.ops import aggregate_losses, masked_sum
from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.rollout import Advantages, Batch, Rollout, loss_mask
from lmrl.algorithms.rows import split_by_length
from lmrl.training.devices import gradient_sync
from lmrl.training.memory import microbatch_budget
from lmrl.training.minibatch import WholeMinibatch
from lmrl.training.proximal import importance_weights
from lmrl.training.run import require_finite
from lmrl.training.schedule import schedule_factor
from lmrl.training.update_settings import TrainSettings


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


def learning_rate_factor(update: int, settings: TrainSettings) -> float:
    """Return what the peak learning rate is multiplied by in update 1, 2, ...: linear warm-up, then the schedule."""
    return schedule_factor(update - 1, settings.updates, settings.warmup_updates, settings.schedule)


class Updater:
    """Applies a policy optimizer to rollouts; ``policy`` is a ``TextPolicy`` or whatever else evaluates batches."""

    def __init__(
        self,
        optimizer: PolicyOptimizer,
        policy: Any,
        torch_optimizer: torch.optim.Optimizer,
        accelerator: Any,
        settings: TrainSettings,
        kl: KLSettings,
        importance: bool = True,
    ) -> None:
        self.importance = importance
        self.optimizer = optimizer
        self.policy = policy
        self.torch_optimizer = torch_optimizer
        self.accelerator = accelerator
        self.settings = settings
        self.kl = kl
        module = getattr(policy, "module", None)
        model = getattr(module, "module", module)  # accelerate wraps it on several ranks
        self.token_budget = microbatch_budget(settings, accelerator.device, model)
        self._peaks = [group["lr"] for group in torch_optimizer.param_groups]

    def update(self, rollout: Rollout, beta: float, update: int, seed: int) -> dict[str, float]:
        """Learn from one rollout; return the metrics' means. ``seed`` shuffles rows and is the same on every rank."""
        if self.optimizer.defines("pairs"):
            return self.learn(self.optimizer.pairs(rollout), beta, update, seed)
        advantages = global_advantages(self.optimizer, rollout, self.accelerator)
        batch = Batch.from_rollout(rollout, advantages)
        total = MetricMeans()
        if rollout.proximal_logprobs is not rollout.sampler_logprobs:
            batch = self._corrected(batch, total)
        for name, column in advantages.metrics.items():
            total.add(name, column, batch.loss_mask)
        total.add("advantage", batch.advantages, batch.loss_mask)
        return self.learn(batch, beta, update, seed, total)

    def _corrected(self, batch: Batch, total: MetricMeans) -> Batch:
        """Return the batch with advantages that are weighted for samples of another distribution, unless opted out."""
        weights = importance_weights(
            batch.proximal_logprobs, batch.sampler_logprobs, batch.loss_mask, self.settings.importance_cap
        )
        total.add("importance_weight", weights, batch.loss_mask)
        total.add("importance_weight_squared", weights.square(), batch.loss_mask)
        return replace(batch, advantages=batch.advantages * weights) if self.importance else batch

    def learn(
        self, batch: Experience, beta: float, update: int, seed: int, total: MetricMeans | None = None
    ) -> dict[str, float]:
        """Take the optimizer's epochs of minibatches over anything it learns from; return the metrics' means."""
        factor = learning_rate_factor(update, self.settings)
        for group, peak in zip(self.torch_optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        total = total or MetricMeans()
        generator = torch.Generator().manual_seed(seed)
        steps, stopped = 0, False
        for epoch in range(self.optimizer.settings.epochs):
            for number, rows in enumerate(minibatch_rows(batch, self.optimizer.settings.minibatches, generator)):
                where = f"update {update}, epoch {epoch + 1}, minibatch {number + 1}"
                stopped = self._step(batch.select(rows), beta, epoch, where, total)
                if stopped:
                    break
                steps += 1
            if stopped:
                break
        means = total.means(self.accelerator)
        if "importance_weight_squared" in means:
            squared = means.pop("importance_weight_squared")
            # Kish's effective sample size as a share of the tokens.
            means["effective_sample_share"] = means["importance_weight"] ** 2 / squared if squared else 0.0
        metrics = {f"optimizer/{name}": value for name, value in means.items()}
        return metrics | {"optimizer/steps": float(steps), "optimizer/learning_rate": self._peaks[0] * factor}

    def _step(self, minibatch: Experience, beta: float, epoch: int, where: str, total: MetricMeans) -> bool:
        """Take one gradient step; return True if the optimizer asked to stop before it."""
        accelerator = self.accelerator
        mask = loss_mask(minibatch)
        counts = accelerator.reduce(torch.stack([mask.sum(), mask.any(1).sum()]).float(), reduction="sum")
        token_count, row_count = counts.clamp_min(1).unbind()
        means = MetricMeans()
        loss_sum = torch.zeros((), device=mask.device)
        self.torch_optimizer.zero_grad(set_to_none=True)
        # A policy that knows better than by padded positions how rows fit together says so.
        split = getattr(self.policy, "split", None)
        if split is None:
            microbatches = split_by_length(minibatch.row_lengths, self.token_budget)
        else:
            microbatches = split(minibatch, self.token_budget)
        if self.optimizer.defines("statistics"):
            minibatch = self._with_means(minibatch, microbatches)
        for index, rows in enumerate(microbatches):
            last = index == len(microbatches) - 1
            with gradient_sync(accelerator, getattr(self.policy, "module", None), last):
                share = self._loss(minibatch.select(rows), beta, token_count, row_count, means)
                # Data-parallel wrappers average gradients over ranks; the counts are global, so undo the division.
                accelerator.backward(share * accelerator.num_processes)
            self.policy.forget()
            loss_sum += share.detach()
        if self.optimizer.defines("should_stop") and self.optimizer.should_stop(means.means(accelerator)):
            self.torch_optimizer.zero_grad(set_to_none=True)
            return True
        parameters = [p for group in self.torch_optimizer.param_groups for p in group["params"]]
        one = torch.ones((), device=mask.device)
        limit = self.settings.max_gradient_norm or math.inf
        norm = accelerator.clip_grad_norm_(parameters, limit)
        loss_sum = accelerator.reduce(loss_sum, reduction="sum")
        loss, norm_value = torch.stack([loss_sum, norm.detach().to(loss_sum)]).tolist()
        require_finite("the loss", loss, where)
        require_finite("the gradient's norm", norm_value, where)
        if self.optimizer.defines("step"):

            def share_of_loss(part: Any) -> Tensor:
                return self._loss(part, beta, token_count, row_count, MetricMeans())

            whole = WholeMinibatch(self, minibatch, microbatches, (token_count, row_count), share_of_loss, epoch)
            for name, number in self.optimizer.step(whole).items():
                means.add_sum(name, torch.full_like(one, number), one)
            whole.drop_gradient()
        self.torch_optimizer.step()
        if self.optimizer.defines("after_step"):
            self.optimizer.after_step(self.policy)
        means.add_sum("loss", loss_sum, one)
        means.add_sum("gradient_norm", norm.detach().to(loss_sum), one)
        total.merge(means)
        return False

    @torch.no_grad()
    def _with_means(self, minibatch: Any, microbatches: list[Tensor]) -> Any:
        """Return the minibatch with the means of the optimizer's statistics over all ranks."""
        means = MetricMeans()
        for rows in microbatches:
            part = minibatch.select(rows)
            for name, column in self.optimizer.statistics(self.policy, part).items():
                means.add(name, column, loss_mask(part))
            self.policy.forget()
        return replace(minibatch, means=means.means(self.accelerator))

    def _loss(self, part: Any, beta: float, token_count: Tensor, row_count: Tensor, means: MetricMeans) -> Tensor:
        """Return this microbatch's share of the minibatch's loss."""
        loss, mask = self.optimizer.loss(self.policy, part), loss_mask(part)
        aggregation = self.optimizer.settings.loss_aggregation
        share = aggregate_losses(loss.losses, mask, aggregation, token_count, row_count)
        for name, column in loss.metrics.items():
            means.add(name, column, mask)
        if isinstance(part, Batch) and self.kl.placement == "loss" and beta > 0:
            now = self.policy.evaluate(part).logprobs
            reference = part.rollout.reference_logprobs
            penalty = kl_losses(now, part.proximal_logprobs, reference, part.action_mask, self.kl)
            means.add("kl_loss", penalty, mask)
            share = share + beta * aggregate_losses(penalty, mask, aggregation, token_count, row_count)
        return share


def minibatch_rows(batch: Rollout | Experience, minibatches: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of each minibatch of one pass: shuffled by group, so that samples of one prompt stay together."""
    groups = batch.group.unique()
    order = groups[torch.randperm(len(groups), generator=generator).to(groups.device)]
    for chosen in order.tensor_split(min(minibatches, len(groups))):
        yield torch.isin(batch.group, chosen).nonzero().squeeze(1)


def global_advantages(optimizer: PolicyOptimizer, rollout: Rollout, accelerator: Any) -> Advantages:
    """Let the optimizer see the rollout of all ranks at once, and return this rank's rows of what it answers.

    Whitening and baselines are then global without any collective in an optimizer.
    """
    if accelerator.num_processes == 1:
        return optimizer.advantages(rollout)
    return _advantages_over_ranks(optimizer, rollout, accelerator)


def _advantages_over_ranks(optimizer: PolicyOptimizer, rollout: Rollout, accelerator: Any) -> Advantages:
    rank, rows, width = accelerator.process_index, len(rollout), rollout.action_mask.shape[1]

    def collect(column: Tensor) -> Tensor:
        if column.ndim == 2:
            column = accelerator.pad_across_processes(column, dim=1)
        gathered: Tensor = accelerator.gather(column)
        return gathered

    # Groups are numbered per rank; give every rank its own range.
    group = rollout.group + rank * rows
    whole = Rollout(
        inputs=None,
        action_mask=collect(rollout.action_mask.long()).bool(),
        sampler_logprobs=collect(rollout.sampler_logprobs),
        rewards=collect(rollout.rewards),
        scores=collect(rollout.scores),
        terminated=collect(rollout.terminated.long()).bool(),
        truncated=collect(rollout.truncated.long()).bool(),
        group=collect(group),
        declared={name: collect(column) for name, column in sorted(rollout.declared.items())},
        scored=collect(rollout.scored.long()).bool(),
        loss_mask=collect(rollout.loss_mask.long()).bool(),
        proximal_logprobs=collect(rollout.proximal_logprobs),
        policy_version=collect(rollout.policy_version),
        turn=collect(rollout.turn),
    )
    answer = optimizer.advantages(whole)
    mine = slice(rank * rows, (rank + 1) * rows)

    def own(column: Tensor) -> Tensor:
        return column[mine] if column.ndim == 1 else column[mine, :width]

    return Advantages(
        own(answer.advantages),
        {name: own(column) for name, column in answer.extra.items()},
        {name: own(column) for name, column in answer.metrics.items()},
    )
