"""The source of an RL run on prompts: responses of the policy, scored and completed to a rollout."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import index as index_of
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmrl.algorithms.kl import KLController
from lmrl.algorithms.ops import masked_sum
from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.prompts import PromptPool, PromptResults, PromptSampler
from lmrl.algorithms.rollout import Scored
from lmrl.data import PromptSet
from lmrl.errors import NonFiniteError, PluginError, ResumeError, RewardError
from lmrl.models.text_policy import TextPolicy
from lmrl.seeds import PromptOrder, derive_seed, rank_share
from lmrl.stages.rl.first_update import check_samples
from lmrl.stages.rl.resampling import resample
from lmrl.stages.rl.rollouts import PromptBatch, RolloutMaker
from lmrl.training.trainer import Drawn
from lmrl.training.update import MetricMeans, require_finite

if TYPE_CHECKING:
    from lmrl.stages.rl.replay import ReplayBuffer

logger = logging.getLogger(__name__)
SHUFFLED = "shuffled"


class Shuffled(PromptSampler):
    """Every prompt once per epoch, each epoch shuffled anew; updates run across the end of an epoch."""

    def __init__(self, settings: Any, pool: PromptPool) -> None:
        super().__init__(settings, pool)
        self.order = PromptOrder(len(pool), pool.batch, derive_seed(pool.seed, "prompts"))

    def indices(self, update: int) -> Sequence[int]:
        """Return the next prompts of the order."""
        return self.order.indices(update - 1)


@dataclass(frozen=True)
class PromptStream:
    """Training prompts as a sampler chooses them, ``group_size`` responses to each; ranks take shares of every batch.

    ``batch`` is the number of prompts of an update over all ranks, ``name`` the sampler's.
    """

    prompts: PromptSet
    ids: list[list[int]]
    sampler: PromptSampler
    batch: int
    group_size: int
    name: str = SHUFFLED
    rank: int = 0
    ranks: int = 1

    @property
    def rows(self) -> int:
        """Rows of one update over all ranks."""
        return self.batch * self.group_size

    @property
    def first_group(self) -> int:
        """The number of groups on the ranks before this one."""
        return self.rank * (self.batch // self.ranks)

    @property
    def observes(self) -> bool:
        """True if the sampler wants to be told what responses scored."""
        return type(self.sampler).observe is not PromptSampler.observe

    def share(self, update: int) -> Sequence[int]:
        """Return the indices of this rank's prompts in an update (counted from 1)."""
        return rank_share(self._checked(self.sampler.indices(update), self.batch), self.rank, self.ranks)

    def further(self, update: int, number: int, groups: Sequence[int]) -> Sequence[int]:
        """Return the indices of other prompts for these groups of this rank in a further round of sampling."""
        places = [self.first_group + group for group in groups]
        return self._checked(self.sampler.further(update, number, places), len(groups))

    def batch_of(self, indices: Sequence[int], groups: Sequence[int] | None = None) -> PromptBatch:
        """Return the prompts at these indices, as the groups of these numbers if they are not all of this rank's."""
        made = PromptBatch.of(self.prompts, self.ids, indices, self.group_size, self.first_group)
        if groups is None:
            return made
        return replace(made, groups=[group for group in groups for _ in range(self.group_size)])

    def _checked(self, indices: Sequence[int], count: int) -> Sequence[int]:
        try:
            found = [index_of(index) for index in indices]
        except TypeError:
            raise PluginError(
                f"the prompt sampler {self.name!r} returned {indices!r}; expected {count} whole numbers"
            ) from None
        if len(found) != count or not all(0 <= index < len(self.ids) for index in found):
            raise PluginError(
                f"the prompt sampler {self.name!r} returned {found[:8]}, {len(found)} indices; expected "
                f"{count} of {len(self.ids)} prompts, counted from 0"
            )
        return found


class PromptSource:
    """Samples the prompts of each update from the policy as it is, with the KL coefficient of ``controller``.

    ``resamples`` is how often uninformative groups are sampled anew at the most. ``frozen`` is the reference where it
    is a copy of the starting policy. ``replay`` adds groups of earlier updates.
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
        replay: ReplayBuffer | None = None,
    ) -> None:
        self.maker, self.prompts, self.optimizer = maker, prompts, optimizer
        self.controller, self.accelerator = controller, accelerator
        self.resamples, self.seed, self.frozen, self.replay = resamples, seed, frozen, replay
        self._further = optimizer.further_requests if optimizer.defines("further_requests") else None
        self._selects = optimizer.defines("informative")
        self._checked = False
        self._parts: set[str] = set()

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
                fresh, metrics = self.sample(update)
                fresh = self._with_all_parts(fresh)
            sampled = time.perf_counter()
            self._check(fresh, updates)
            scored = fresh
            if self.replay is not None:
                scored, replayed = self.replay.mixed(update, fresh)
                scored = self._with_all_parts(scored)
                metrics |= replayed
            reference = maker.reference_logprobs(scored.samples) if maker.scores_reference else None
            rollout = maker.complete(scored, reference, beta)
        # Replayed groups stand below the new ones, which alone are of this policy, and so are the metrics.
        new = len(fresh.scores)
        kl_rows = None if reference is None else (rollout.proximal_logprobs - reference)[:new].sum(1)
        metrics |= self._finite(self.means(fresh, kl_rows), update)
        if {"rollout/reward", "rollout/kl"} <= metrics.keys():
            metrics["rollout/objective"] = metrics["rollout/reward"] - beta * metrics["rollout/kl"]
        metrics |= {
            "rollout/beta": beta,
            "time/sample_seconds": sampled - start,
            "time/score_seconds": time.perf_counter() - sampled,
        }
        histograms = {"rollout/lengths": fresh.samples.inputs.action_counts.cpu().numpy()}
        if bool(fresh.scored.any()):
            histograms["rollout/rewards"] = fresh.scores[fresh.scored].cpu().numpy()
        return Drawn(rollout, metrics, metrics["rollout/tokens"], self.prompts.rows, histograms)

    def close(self) -> None:
        """End what engine and reward keep running."""
        self.maker.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the prompt sampler, where it is not the default one, and of a replay buffer."""
        found: dict[str, Any] = {}
        if self.prompts.name != SHUFFLED:
            found["prompt_sampler"] = {"name": self.prompts.name, "state": self.prompts.sampler.state_dict()}
        if self.replay is not None:
            found["replay"] = self.replay.state_dict()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned; raises ``ResumeError`` for another sampler."""
        stored = state.get("prompt_sampler", {"name": SHUFFLED, "state": {}})
        if stored["name"] != self.prompts.name:
            raise ResumeError(
                f"the checkpoint is of prompt_sampler.name={stored['name']}, and this run's is {self.prompts.name}; "
                "set the name back, or start a new run from the checkpoint with model=FOLDER"
            )
        self.prompts.sampler.load_state_dict(stored["state"])
        if self.replay is not None and "replay" in state:
            self.replay.load_state_dict(state["replay"])

    def sample(self, update: int) -> tuple[Scored, dict[str, float]]:
        """Sample an update's prompts, and others for groups from which the optimizer can learn nothing."""
        maker, stream = self.maker, self.prompts
        drawn: list[tuple[Sequence[int], Sequence[int]]] = [((), indices := stream.share(update))]
        prompts = stream.batch_of(indices)
        sampled = [maker.sample(prompts, derive_seed(self.seed, "sample", update), self._further)]
        scored, metrics = sampled[0], {}

        def more(number: int, groups: Sequence[int]) -> PromptBatch:
            drawn.append((groups, found := stream.further(update, number, groups)))
            return stream.batch_of(found, groups)

        if self._selects:
            scored, _, lacking = resample(
                maker,
                self.optimizer,
                scored,
                prompts,
                more,
                lambda number: derive_seed(self.seed, "resample", update, number),
                self.resamples,
                self.accelerator,
                self._further,
                sampled.append,
            )
            metrics["rollout/uninformative_groups"] = float(lacking)
        if stream.observes:
            self._observe(update, drawn, sampled)
        return scored, metrics

    def _observe(
        self, update: int, drawn: Sequence[tuple[Sequence[int], Sequence[int]]], sampled: Sequence[Scored]
    ) -> None:
        """Tell the sampler the scores of all groups on all ranks, in the order of rounds and groups."""
        rows = []
        for number, ((groups, indices), scored) in enumerate(zip(drawn, sampled, strict=True)):
            first, places = self.prompts.first_group, groups or range(len(indices))
            for group, index in zip(places, indices, strict=True):
                scores = scored.scores[(scored.samples.group == group) & scored.scored].double()
                mean = float(scores.mean())
                spread = float(scores.std(correction=0)) if len(scores) else math.nan  # std() warns of no scores
                rows.append((number, first + group, index, mean, spread, len(scores)))
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            rows = sorted(gather_object(rows), key=lambda row: row[:2])
        _, _, indices, means, spreads, counts = zip(*rows, strict=True)
        self.prompts.sampler.observe(PromptResults(update, indices, means, spreads, counts))

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
        columns |= {f"rollout/reward_{name}": part for name, part in scored.score_parts.items()}
        whole = ("rollout/kl", "rollout/logprob")  # a NaN in these is an error, which ends the run
        for name, column in columns.items():
            column = column.to(scored.scores)
            within = torch.ones_like(scored.scored) if name in whole else ~column.isnan()
            means.add_sum(name, masked_sum(column, within), within.sum())
        totals = means.totals(self.accelerator)
        numbers = {name: total / count for name, (total, count) in totals.items() if count}
        numbers["rollout/scored"] = totals["rollout/reward"][1]
        return numbers | {"rollout/tokens": numbers["rollout/length"] * self.prompts.rows}

    def _with_all_parts(self, scored: Scored) -> Scored:
        """Return the same with the parts of all ranks and updates so far: where all rows were truncated are none."""
        self._parts |= set(scored.score_parts)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            self._parts |= set(gather_object(sorted(self._parts)))
        return scored.with_parts(self._parts)

    def _check(self, scored: Scored, updates: int) -> None:
        """Compare the first samples with the policy's own forward pass, and with the frozen copy of a new policy."""
        if not self._checked:
            found = (self.maker.own, self.frozen if updates == 0 else None)
            policies = [policy for policy in found if policy is not None]
            check_samples(scored.samples, policies, self.accelerator, self.maker.engine.capabilities.exact)
        self._checked = True

    def _finite(self, means: dict[str, float], update: int) -> dict[str, float]:
        """Return the means, or raise ``NonFiniteError``; log where nothing has a score that the optimizer reads."""
        if "rollout/reward" in means:
            require_finite("the reward", means["rollout/reward"], f"update {update}")
        elif self.maker.needs.scores:
            logger.warning("update %d: no response has a score", update)
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
