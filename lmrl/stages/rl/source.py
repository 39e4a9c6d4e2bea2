"""The source of an RL run on prompts: responses of the policy, scored and completed to a rollout."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.kl import KLController
from lmrl.algorithms.ops import masked_sum
from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.rollout import Scored
from lmrl.errors import NonFiniteError, RewardError
from lmrl.models.text_policy import TextPolicy
from lmrl.seeds import derive_seed
from lmrl.stages.rl.first_update import check_samples
from lmrl.stages.rl.resampling import resample
from lmrl.stages.rl.rollouts import PromptStream, RolloutMaker
from lmrl.training.trainer import Drawn
from lmrl.training.update import MetricMeans, require_finite

logger = logging.getLogger(__name__)


class PromptSource:
    """Samples the prompts of each update from the policy as it is, with the KL coefficient of ``controller``.

    ``resamples`` is how often uninformative groups are sampled anew at the most. ``frozen`` is the reference where it
    is a copy of the starting policy.
    """

    def __init__(
        self,
        maker: RolloutMaker,
        prompts: PromptStream,
        optimizer: PolicyOptimizer,
        controller: KLController,
        accelerator: Any,
        resamples: int,
        seed: int,
        frozen: TextPolicy | None = None,
    ) -> None:
        self.maker, self.prompts, self.optimizer = maker, prompts, optimizer
        self.controller, self.accelerator = controller, accelerator
        self.resamples, self.seed, self.frozen = resamples, seed, frozen
        self._further = optimizer.further_requests if optimizer.defines("further_requests") else None
        self._selects = optimizer.defines("informative")
        self._checked = False

    def next(self, updates: int) -> Drawn:
        """Sample, score and complete the rollout of the next update.

        Raises ``RewardError`` and ``NonFiniteError``, which name the update, and ``ModelError`` in the first call where
        the policy does not evaluate to what was sampled.
        """
        update, maker, beta = updates + 1, self.maker, self.controller.beta
        start = time.perf_counter()
        with self.accelerator.autocast():
            with errors_named(f"update {update}"):
                maker.publish(updates)
                scored, metrics = self.sample(update)
            sampled = time.perf_counter()
            self._check(scored, updates)
            reference = maker.reference_logprobs(scored.samples) if maker.scores_reference else None
            rollout = maker.complete(scored, reference, beta)
        kl_rows = None if reference is None else (rollout.proximal_logprobs - reference).sum(1)
        metrics |= self._finite(self.means(scored, kl_rows), update)
        if {"rollout/reward", "rollout/kl"} <= metrics.keys():
            metrics["rollout/objective"] = metrics["rollout/reward"] - beta * metrics["rollout/kl"]
        metrics |= {
            "rollout/beta": beta,
            "time/sample_seconds": sampled - start,
            "time/score_seconds": time.perf_counter() - sampled,
        }
        histograms = {"rollout/lengths": scored.samples.inputs.action_counts.cpu().numpy()}
        if bool(scored.scored.any()):
            histograms["rollout/rewards"] = scored.scores[scored.scored].cpu().numpy()
        return Drawn(rollout, metrics, metrics["rollout/tokens"], self.prompts.rows, histograms)

    def close(self) -> None:
        """End what engine and reward keep running."""
        self.maker.close()

    def sample(self, update: int) -> tuple[Scored, dict[str, float]]:
        """Sample an update's prompts, and others for groups from which the optimizer can learn nothing."""
        maker, prompts = self.maker, self.prompts.batch(update)
        scored = maker.sample(prompts, derive_seed(self.seed, "sample", update), self._further)
        if not self._selects:
            return scored, {}
        scored, _, lacking = resample(
            maker,
            self.optimizer,
            scored,
            prompts,
            lambda number, groups: self.prompts.further(update, number, groups),
            lambda number: derive_seed(self.seed, "resample", update, number),
            self.resamples,
            self.accelerator,
            self._further,
        )
        return scored, {"rollout/uninformative_groups": float(lacking)}

    def means(self, scored: Scored, kl_rows: Tensor | None) -> dict[str, float]:
        """Return the rollout's metrics, averaged over the rows of all ranks.

        Rewards are averaged over scored rows, and each term of the reward over the rows that it applies to. A mean of
        no rows is absent, and so is the KL where no reference was computed. ``rollout/scored`` is the number of scored
        rows.
        """
        means, samples = MetricMeans(), scored.samples
        columns: dict[str, Tensor] = {
            "rollout/reward": scored.scores.masked_fill(~scored.scored, torch.nan),
            "rollout/length": samples.inputs.action_counts,
            "rollout/terminated": samples.terminated,
            "rollout/logprob": samples.sampler_logprobs.sum(1),
        }
        if kl_rows is not None:
            columns["rollout/kl"] = kl_rows
        for name in self._part_names(scored):
            columns[f"rollout/reward_{name}"] = scored.score_parts.get(
                name, torch.zeros_like(scored.scores)
            ).masked_fill(samples.truncated, torch.nan)
        whole = ("rollout/kl", "rollout/logprob")  # a NaN in these is an error, which ends the run
        for name, column in columns.items():
            column = column.to(scored.scores)
            within = torch.ones_like(scored.scored) if name in whole else ~column.isnan()
            means.add_sum(name, masked_sum(column, within), within.sum())
        totals = means.totals(self.accelerator)
        numbers = {name: total / count for name, (total, count) in totals.items() if count}
        numbers["rollout/scored"] = totals["rollout/reward"][1]
        return numbers | {"rollout/tokens": numbers["rollout/length"] * self.prompts.rows}

    def _part_names(self, scored: Scored) -> list[str]:
        """Return the names of the reward's terms on all ranks: one whose rows were all truncated has none."""
        if self.accelerator.num_processes == 1:
            return list(scored.score_parts)
        from accelerate.utils import gather_object

        return list(gather_object(sorted(scored.score_parts)))

    def _check(self, scored: Scored, updates: int) -> None:
        """Compare the first samples with the policy's own forward pass, and with the frozen copy of a new policy."""
        if not self._checked:
            found = (self.maker.own, self.frozen if updates == 0 else None)
            policies = [policy for policy in found if policy is not None]
            check_samples(scored.samples, policies, self.accelerator, self.maker.engine.capabilities.exact)
        self._checked = True

    def _finite(self, means: dict[str, float], update: int) -> dict[str, float]:
        """Return the means, or raise ``NonFiniteError``; log where nothing has a score."""
        if "rollout/reward" in means:
            require_finite("the reward", means["rollout/reward"], f"update {update}")
        else:
            logger.warning("update %d: no response has a score, so there is nothing to learn from", update)
        if "rollout/kl" in means:
            require_finite("the KL to the reference", means["rollout/kl"], f"update {update}")
        return means


@contextmanager
def errors_named(where: str) -> Iterator[None]:
    """Put where it happened in front of what the reward or the engine raises: neither knows the update."""
    try:
        yield
    except (RewardError, NonFiniteError) as error:
        raise type(error)(f"{where}: {error}") from error
