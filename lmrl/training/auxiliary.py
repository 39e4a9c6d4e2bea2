"""A second stream of data: its loss, times a weight, is added to the gradient of every optimizer step.

With imitation as its method and the loss of PPO beside it this is PPO-ptx (Ouyang et al. 2022, eq. 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.experience import Experience
from lmrl.algorithms.ops import aggregate_losses
from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.rollout import loss_mask
from lmrl.training.policy import TrainablePolicy
from lmrl.training.update import MetricMeans, require_finite, with_statistics


class Auxiliary:
    """Method that learns from data, its data, and the weight of its loss in each step of an ``Updater``.

    ``draw`` returns this rank's rows of step 0, 1, ... of the run. ``policy`` evaluates them with the parameters that
    the updater moves. Averages are over the rows of all ranks, whatever the microbatches.
    """

    def __init__(
        self,
        optimizer: PolicyOptimizer,
        policy: TrainablePolicy,
        draw: Callable[[int], Experience],
        weight: float,
        token_budget: int,
    ) -> None:
        self.optimizer, self.policy, self.draw = optimizer, policy, draw
        self.weight, self.token_budget = weight, token_budget
        self.drawn = 0
        """Steps that rows were drawn for so far."""
        self._means = MetricMeans()

    def backward(self, accelerator: Any, where: str) -> None:
        """Add the gradient of the weighted loss of the next rows; ranks do not exchange gradients here.

        Raises ``NonFiniteError`` for a loss that is not finite.
        """
        batch: Any = self.draw(self.drawn)
        self.drawn += 1
        mask = loss_mask(batch)
        counts = accelerator.reduce(torch.stack([mask.sum(), mask.any(1).sum()]).float(), reduction="sum")
        token_count, row_count = counts.clamp_min(1).unbind()
        microbatches = self.policy.microbatches(batch, self.token_budget)
        if self.optimizer.defines("statistics"):
            batch = with_statistics(self.optimizer, self.policy, batch, microbatches, accelerator)
        total = torch.zeros((), device=mask.device)
        for rows in microbatches:
            with self.policy.no_sync():
                share = self._share(batch.select(rows), token_count, row_count)
                accelerator.backward(self.weight * share * accelerator.num_processes)
            self.policy.forget()
            total += share.detach()
        total = accelerator.reduce(total, reduction="sum")
        require_finite("the auxiliary loss", float(total), where)
        self._means.add_sum("loss", total, torch.ones_like(total))

    def metrics(self, accelerator: Any) -> dict[str, float]:
        """Return the means since this was called last, over all ranks, under ``auxiliary/``."""
        found, self._means = self._means.means(accelerator), MetricMeans()
        return {f"auxiliary/{name}": value for name, value in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the checkpoint state: the steps drawn so far, and the method's."""
        return {"drawn": self.drawn, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.drawn = int(state["drawn"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _share(self, part: Any, token_count: Tensor, row_count: Tensor) -> Tensor:
        """Return a microbatch's share of the aggregated loss."""
        loss, mask = self.optimizer.loss(self.policy, part), loss_mask(part)
        for name, column in loss.metrics.items():
            self._means.add(name, column, mask)
        return aggregate_losses(loss.losses, mask, self.optimizer.settings.loss_aggregation, token_count, row_count)
