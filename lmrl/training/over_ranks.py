"""Advantages over the rollout of all ranks: whitening and baselines are global, and optimizers hold no collective."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.rollout import Advantages, Rollout


def advantages_over_ranks(optimizer: PolicyOptimizer, rollout: Rollout, accelerator: Any) -> Advantages:
    """Let the optimizer see the rollout of all ranks at once, and return this rank's rows of its advantages."""
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
        parts={name: collect(column) for name, column in sorted(rollout.parts.items())},
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
