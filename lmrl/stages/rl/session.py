"""State of an RL run: this rank's batches, the rollout's metrics, and its checkpoints."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.experience import Experience
from lmrl.algorithms.kl import KLController
from lmrl.algorithms.ops import masked_sum
from lmrl.algorithms.rollout import Scored
from lmrl.data import PromptOrder, PromptSet
from lmrl.models.processors import save_processor
from lmrl.plugins import PluginManager
from lmrl.seeds import derive_seed
from lmrl.stages.rl.config import RLConfig
from lmrl.stages.rl.offline import OfflineData
from lmrl.stages.rl.rollouts import PromptBatch, RolloutMaker
from lmrl.training.checkpoint import save_run
from lmrl.training.run import Run
from lmrl.training.update import MetricMeans, Updater


@dataclass
class Session:
    """Everything that an RL run holds while it goes on."""

    config: RLConfig
    run: Run
    plugins: PluginManager
    accelerator: Any
    maker: RolloutMaker
    updater: Updater
    controller: KLController
    training: PromptSet
    training_ids: list[list[int]]
    evaluation_batch: PromptBatch | None
    order: PromptOrder
    fingerprint: str
    start_update: int = 0
    offline: OfflineData | None = None
    """Data of an offline method."""
    dtype: torch.dtype = torch.float32
    """Precision of the model in checkpoints."""

    @property
    def starts_as_reference(self) -> bool:
        """True if the initial policy is the reference model and is sampled as it is, without a logits processor."""
        return not self.config.reference and self.maker.processor is None

    def offline_batch(self, update: int) -> Experience:
        """Return this rank's share of the data of an update (counted from 1)."""
        assert self.offline is not None
        return self.offline.batch(self._share(self.order.indices(update - 1)))

    def further_batch(self, update: int, number: int, groups: Sequence[int]) -> PromptBatch:
        """Return other prompts for these groups of this rank in a further round of sampling.

        What a group is given depends on its number in the whole batch, not on the rank.
        """
        seed, first = self.config.run.seed, self._first_group
        indices = [
            random.Random(derive_seed(seed, "further prompts", update, number, first + group)).randrange(
                len(self.training)
            )
            for group in groups
        ]
        size = self.config.train.group_size
        batch = prompt_batch(self.training, self.training_ids, indices, size, first)
        return replace(batch, groups=[group for group in groups for _ in range(size)])

    def _share(self, indices: Sequence[int]) -> Sequence[int]:
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = len(indices) // ranks
        return indices[rank * size : (rank + 1) * size]

    def training_batch(self, update: int) -> PromptBatch:
        """Return this rank's share of the prompts of an update (counted from 1)."""
        indices = self._share(self.order.indices(update - 1))
        return prompt_batch(self.training, self.training_ids, indices, self.config.train.group_size, self._first_group)

    @property
    def _first_group(self) -> int:
        """The number of groups on the ranks before this one."""
        accelerator = self.accelerator
        share: int = self.config.train.prompts_per_update // accelerator.num_processes
        return int(accelerator.process_index) * share

    def rollout_means(self, scored: Scored, kl_rows: Tensor) -> dict[str, float]:
        """Return the rollout's metrics, averaged over the rows of all ranks.

        Rewards are averaged over scored rows, and each term of the reward over the rows that it applies to. A mean of
        no rows is absent. ``rollout/scored`` is the number of scored rows.
        """
        from accelerate.utils import gather_object

        means = MetricMeans()
        samples = scored.samples
        columns: dict[str, Tensor] = {
            "rollout/reward": scored.scores.masked_fill(~scored.scored, torch.nan),
            "rollout/kl": kl_rows,
            "rollout/length": samples.inputs.action_counts,
            "rollout/terminated": samples.terminated,
            "rollout/logprob": samples.sampler_logprobs.sum(1),
        }
        # A rank whose rows were all truncated has scored none and has no terms, but must sum as many numbers.
        names = gather_object(sorted(scored.score_parts)) if self.accelerator.num_processes > 1 else scored.score_parts
        for name in names:
            columns[f"rollout/reward_{name}"] = scored.score_parts.get(
                name, torch.zeros_like(scored.scores)
            ).masked_fill(samples.truncated, torch.nan)
        whole = ("rollout/kl", "rollout/logprob")  # a NaN in these is an error, which ends the run
        for name, column in columns.items():
            column = column.to(kl_rows)
            within = torch.ones_like(scored.scored) if name in whole else ~column.isnan()
            means.add_sum(name, masked_sum(column, within), within.sum())
        totals = means.totals(self.accelerator)
        numbers = {name: total / count for name, (total, count) in totals.items() if count}
        numbers["rollout/scored"] = totals["rollout/reward"][1]
        rows = self.config.train.prompts_per_update * self.config.train.group_size
        return numbers | {"rollout/tokens": numbers["rollout/length"] * rows}

    def after_update(self, update: int) -> None:
        """Let the logits processor follow the policy, if there is one."""
        if self.maker.processor is not None:
            self.maker.processor.after_update(update, self.maker.policy.model)

    def save(self, update: int) -> None:
        """Write a checkpoint from which the run continues as if it had not stopped."""

        def write(folder: Path) -> None:
            card = self.maker.card
            self.maker.policy.save(folder, card.files or card.path, self.dtype)
            if self.maker.processor is not None:
                save_processor(self.maker.processor, folder)

        def state() -> dict[str, Any]:
            return {
                "update": update,
                "updates": self.config.train.updates,
                "torch_optimizer": self.updater.torch_optimizer.state_dict(),
                "optimizer": self.updater.optimizer.state_dict(),
                "controller": self.controller.state_dict(),
                "prompts": self.fingerprint,
            }

        save_run(self.run, self.accelerator, self.plugins, update, self.maker.policy, write, state)


def prompt_batch(
    prompts: PromptSet, ids: Sequence[list[int]], indices: Sequence[int], samples: int, first_group: int = 0
) -> PromptBatch:
    """Return the prompts at ``indices``, each repeated ``samples`` times."""
    rows = [index for index in indices for _ in range(samples)]
    return PromptBatch(
        [ids[row] for row in rows],
        [prompts.prompts[row] for row in rows],
        {name: [column[row] for row in rows] for name, column in prompts.columns.items()},
        [place for place in range(len(indices)) for _ in range(samples)],
        first_group,
    )
