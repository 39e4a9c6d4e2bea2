"""From prompts to a ``Rollout``: sample, decode once, score, then reference, values and shaped rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmrl.algorithms.beside import POLICY, no_such_model
from lmrl.algorithms.experience import Responses
from lmrl.algorithms.kl import KLSettings, shape_rewards
from lmrl.algorithms.optimizer import LogitsProcessor
from lmrl.algorithms.rollout import Rollout, Samples, Scored
from lmrl.algorithms.sequences import join_records
from lmrl.data import PromptSet
from lmrl.engines.batch import generate_all, requests_of, require_sampled_ids, samples_of
from lmrl.engines.protocol import Engine, Request, Response, SamplingSpec
from lmrl.models.beside import ModelsBeside
from lmrl.models.policy import PolicyModel, PolicyWeights
from lmrl.models.text_policy import Reference, TextPolicy, reference_spec, score_reference, score_values
from lmrl.plugins.specs import Needs
from lmrl.rewards.binding import sampled_columns
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.stages.rl.early_scores import EarlyScores
from lmrl.stages.rl.further import FurtherBatch, FurtherRequests
from lmrl.text.card import ModelCard, response_texts
from lmrl.training.proximal import proximal_logprobs


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one batch, one entry per row; samples of one prompt share their number in ``groups``.

    ``first_group`` is the number of groups on the ranks before this one: what is drawn depends on a group's number in
    the whole batch, not on the rank that draws it.
    """

    ids: list[list[int]]
    texts: list[str]
    columns: Mapping[str, Sequence[Any]]
    groups: list[int]
    first_group: int = 0

    @classmethod
    def of(
        cls, prompts: PromptSet, ids: Sequence[list[int]], indices: Sequence[int], samples: int, first_group: int = 0
    ) -> PromptBatch:
        """Return the prompts at ``indices``, each repeated ``samples`` times."""
        rows = [index for index in indices for _ in range(samples)]
        return cls(
            [ids[row] for row in rows],
            [prompts.prompts[row] for row in rows],
            {name: [column[row] for row in rows] for name, column in prompts.columns.items()},
            [place for place in range(len(indices)) for _ in range(samples)],
            first_group,
        )

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """Return the rows with these indices."""
        columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        return PromptBatch(
            [self.ids[row] for row in rows],
            [self.texts[row] for row in rows],
            columns,
            [self.groups[row] for row in rows],
            self.first_group,
        )

    def rows_of_groups(self) -> dict[int, list[int]]:
        """Return the rows of every group, by its number."""
        rows: dict[int, list[int]] = {}
        for row, group in enumerate(self.groups):
            rows.setdefault(group, []).append(row)
        return rows

    def requests(self, spec: SamplingSpec, seed: int) -> list[Request]:
        """Return a request for every row; its seed derives from ``seed``, the group and the sample's place in it."""
        return requests_of(self.ids, spec, seed, self.groups, self.first_group)


@dataclass
class RolloutMaker:
    """Makes rollouts of one policy; holds everything that stays the same from batch to batch."""

    engine: Engine
    policy: PolicyModel
    reference: Reference | None
    """None where nothing needs it."""
    reward: Any
    card: ModelCard
    spec: SamplingSpec
    kl: KLSettings
    needs: Needs
    token_budget: int
    processor: LogitsProcessor | None = None
    """Restricts the tokens that the policy may sample."""
    concurrent: ConcurrentReward | None = None
    """Calls the reward while the engine samples; None calls it once per batch, afterwards."""
    own: TextPolicy | None = None
    """Evaluates the policy in the layout and precision of the update; None where the engine is always exact."""
    exact: bool = True
    """True if the engine's log-probabilities are the policy's own, for tokens that the current weights sampled."""
    on_any_rank: Callable[[bool], bool] = bool
    """Returns whether a flag is true on any rank."""
    beside: ModelsBeside | None = None
    """The models that further requests may name."""
    version: int = 0
    """The version of the weights that were published last."""

    def publish(self, version: int) -> None:
        """Give the engine the policy as it is now."""
        self.engine.publish(PolicyWeights(self.policy, self.card, self.processor), version)
        self.version = version

    def _published_beside(self, requests: Sequence[Request]) -> list[Request]:
        """Give the engine the models that these requests name; the tokens that the policy lacks are forbidden."""
        padding: dict[str, tuple[int, ...]] = {POLICY: ()}
        for name in sorted({request.model for request in requests} - {POLICY}):
            if self.beside is None or name not in self.beside.names:
                raise no_such_model(name, () if self.beside is None else self.beside.names)
            self.engine.publish(self.beside.weights(name), self.version, name)
            padding[name] = self.beside.padding(name)
        specs = [replace(one.spec, forbidden_ids=one.spec.forbidden_ids + padding[one.model]) for one in requests]
        return [replace(one, spec=spec) for one, spec in zip(requests, specs, strict=True)]

    def sample(self, prompts: PromptBatch, seed: int, further: FurtherRequests | None = None) -> Scored:
        """Sample a response to every row with the published weights, and score those that are not truncated.

        ``further`` makes further requests of each group's; their scores are in ``Scored.further_scores``.
        """
        requests = prompts.requests(self.spec, seed)
        rows, asked = len(requests), prompts
        beside = None if further is None else FurtherBatch.of(prompts, requests, further)
        if beside is not None:
            requests += self._published_beside(beside.requests)
            asked = join_records([prompts, beside.prompts])
        early = None
        if self.concurrent is not None:
            early = EarlyScores(self.concurrent, self.card.codec, asked.texts, asked.columns)
        try:
            responses = generate_all(self.engine, requests, early.add if early is not None else None)
            require_sampled_ids([response.ids for response in responses], self.card)
            scored = self._score(responses[:rows], prompts, early)
            if beside is None:
                return scored
            found = self._score(responses[rows:], beside.prompts, early, rows)
            return beside.put(scored, found, prompts.groups)
        except BaseException:
            if early is not None:
                early.cancel()
            raise

    def close(self) -> None:
        """End what engine and reward keep running; they start it anew when they are called again."""
        if self.concurrent is not None:
            self.concurrent.close()
        self.engine.close()

    def _score(
        self, responses: Sequence[Response], prompts: PromptBatch, early: EarlyScores | None, first: int = 0
    ) -> Scored:
        """Return the responses with their texts and scores; they are the rows of ``early`` from ``first`` on."""
        rows, spec = [response.ids for response in responses], self.spec
        if early is None:
            texts = response_texts(self.card.codec, prompts.ids, rows, spec.eos_ids, spec.stop_strings)
        else:
            texts = early.responses()[first : first + len(rows)]
        # A response without an action is unscored, as a truncated one is.
        asked = [row for row, response in enumerate(responses) if response.ids and not response.truncated]
        count, device = len(responses), self.policy.model.device
        samples = samples_of(responses, device)
        scored, scores, parts = np.zeros(count, dtype=np.bool_), np.zeros(count), {}
        rewards = np.zeros(tuple(samples.action_mask.shape), dtype=np.float32)
        if asked:
            if early is None:
                columns = {name: [column[i] for i in asked] for name, column in prompts.columns.items()}
                ids, sampled = [prompts.ids[i] for i in asked], [rows[i] for i in asked]
                reasons = [responses[i].finish for i in asked]
                columns |= sampled_columns(self.reward, self.card.codec, ids, sampled, reasons)
                result = self.reward([prompts.texts[i] for i in asked], [texts[i] for i in asked], columns)
            else:
                result = early.result([first + row for row in asked])
            scored[asked] = getattr(result, "scored", True)
            scores[asked] = np.where(scored[asked], result.scores, 0.0)
            spread = getattr(result, "tokens", {})
            for place, row in enumerate(asked):
                tokens = spread.get(place, scores[row : row + 1])
                rewards[row, len(rows[row]) - len(tokens) : len(rows[row])] = tokens
            for name, part in result.parts.items():
                parts[name] = np.full(count, np.nan)
                parts[name][asked] = part
        return Scored(
            samples,
            prompts.texts,
            texts,
            torch.tensor(scores, dtype=torch.float32, device=device),
            {name: torch.tensor(part, dtype=torch.float32, device=device) for name, part in parts.items()},
            torch.tensor(scored, device=device),
            rewards=torch.tensor(rewards, device=device),
        )

    @property
    def scores_reference(self) -> bool:
        """True if every update computes the reference's log-probabilities of its rollout."""
        return self.needs.reference or self.kl.beta > 0 or self.kl.log_reference == "always"

    def reference_logprobs(self, samples: Samples) -> Tensor | None:
        """Return the frozen reference's log-probabilities of the sampled tokens, (B, T); None without a reference."""
        if self.reference is None:
            return None
        return score_reference(self.reference, samples.inputs, reference_spec(self.spec), self.token_budget)

    def proximal_logprobs(self, samples: Samples) -> Tensor:
        """Return the policy's own log-probabilities of the sampled tokens, (B, T); the engine's if it is exact."""
        lagged = bool((samples.policy_version != self.version)[samples.action_mask].any())
        if self.own is None or (self.exact and not self.on_any_rank(lagged)):
            return samples.sampler_logprobs
        return proximal_logprobs(self.own, samples, self.token_budget)

    def complete(self, scored: Scored, reference_logprobs: Tensor | None, beta: float) -> Rollout:
        """Add values and per-token rewards; ``beta`` is the KL coefficient."""
        samples = scored.samples
        proximal = self.proximal_logprobs(samples)
        declared: dict[str, Tensor] = {}
        if reference_logprobs is not None and (self.needs.reference or (self.kl.placement == "loss" and beta > 0)):
            declared["reference_logprobs"] = reference_logprobs
        if self.needs.values:
            values, bootstrap = score_values(self.policy, samples.inputs, self.token_budget)
            declared |= {"values": values, "bootstrap_values": bootstrap}
        if scored.further_scores is not None:
            declared["further_scores"] = scored.further_scores
        further = self._further_responses(scored)
        rewards = shape_rewards(scored.rewards, proximal, reference_logprobs, samples.action_mask, self.kl, beta)
        return Rollout(
            inputs=samples.inputs,
            action_mask=samples.action_mask,
            sampler_logprobs=samples.sampler_logprobs,
            rewards=rewards,
            scores=scored.scores,
            terminated=samples.terminated,
            truncated=samples.truncated,
            group=samples.group,
            declared=declared,
            scored=scored.scored,
            loss_mask=None if self.needs.scores else samples.action_mask,  # type: ignore[arg-type]
            proximal_logprobs=proximal,
            policy_version=samples.policy_version,
            further=further,
            parts=scored.score_parts,
        )

    def _further_responses(self, scored: Scored) -> tuple[Responses, ...]:
        """Return the further responses, with the reference's log-probabilities where the optimizer needs these."""
        found = []
        for samples in scored.further:
            logprobs = self.reference_logprobs(samples) if self.needs.reference else None
            declared = {} if logprobs is None else {"reference_logprobs": logprobs}
            found.append(Responses(samples.inputs, samples.action_mask, declared))
        return tuple(found)
