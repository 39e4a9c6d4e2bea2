"""From prompts to a Rollout: sample, decode once, score, then reference, values and shaped rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmrl.algorithms.kl import KLSettings, shape_rewards
from lmrl.algorithms.rollout import Rollout, Samples, Scored
from lmrl.engines.engine import Engine
from lmrl.engines.spec import SamplingSpec
from lmrl.models.masked import MaskPolicy
from lmrl.models.policy import PolicyModel
from lmrl.models.scoring import reference_spec, score_logprobs, score_values
from lmrl.plugins.specs import Needs
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.rewards.offered import sampled_columns
from lmrl.stages.rl.early_scores import EarlyScores
from lmrl.text.card import ModelCard, response_texts
from lmrl.text.vocabulary import require_sampled_ids


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one batch, one entry per row; samples of one prompt share their number in ``groups``."""

    ids: list[list[int]]
    texts: list[str]
    columns: Mapping[str, Sequence[Any]]
    groups: list[int]

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """Return the rows with these indices."""
        columns = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        return PromptBatch(
            [self.ids[row] for row in rows],
            [self.texts[row] for row in rows],
            columns,
            [self.groups[row] for row in rows],
        )


@dataclass
class RolloutMaker:
    """Makes rollouts of one policy; holds everything that stays the same from batch to batch."""

    engine: Engine
    policy: PolicyModel
    reference: PolicyModel
    reward: Any
    card: ModelCard
    spec: SamplingSpec
    kl: KLSettings
    needs: Needs
    token_budget: int
    mask: MaskPolicy | None = None
    """What restricts the tokens that the policy may draw."""
    concurrent: ConcurrentReward | None = None
    """Calls the reward while the engine samples; None calls it once per batch, afterwards."""
    streams: bool = False
    """Whether the engine tells of complete rows while it samples the others."""
    proximal: Callable[[Samples], Tensor] | None = None
    """Returns the policy's own log-probabilities of samples; None where those of the engine are the same."""
    exact_engine: bool = True
    """Whether the engine says that its log-probabilities are those of the policy, up to rounding."""

    def sample(self, prompts: PromptBatch, seed: int) -> Scored:
        """Sample a response to every row and score those that are not truncated."""
        early = self._early_scores(prompts)
        try:
            with self.policy.extracted() as model:
                drawn_from = model if self.mask is None else self.mask.restrict(model)
                further = {"on_finished": early.add} if early is not None and self.streams else {}
                samples = self.engine.generate(drawn_from, prompts.ids, self.spec, seed, self.card.codec, **further)
            require_sampled_ids(samples.inputs.actions, self.card)
            # One prompt drawn twice from the data stays two groups, as the group size says.
            # An engine may return half precision; ratios and KL are differences of log-probabilities, so float32.
            samples = replace(
                samples,
                group=torch.tensor(prompts.groups, device=samples.group.device),
                sampler_logprobs=samples.sampler_logprobs.float(),
            )
            return self._score(samples, prompts, early)
        except BaseException:
            if early is not None:
                early.cancel()
            raise

    def close(self) -> None:
        """End what engine and reward keep running; they start it anew when they are called again."""
        if self.concurrent is not None:
            self.concurrent.close()
        if callable(close := getattr(self.engine, "close", None)):
            close()

    def _early_scores(self, prompts: PromptBatch) -> EarlyScores | None:
        if self.concurrent is None:
            return None
        return EarlyScores(self.concurrent, self.card.codec, self.spec, prompts.ids, prompts.texts, prompts.columns)

    def _score(self, samples: Samples, prompts: PromptBatch, early: EarlyScores | None) -> Scored:
        rows = samples.inputs.action_rows()
        if early is None:
            responses = response_texts(self.card.codec, prompts.ids, rows, self.spec.eos_ids, self.spec.stop_strings)
        else:
            responses = early.responses(rows)
        asked = torch.nonzero(~samples.truncated).squeeze(1).tolist()
        count, device = len(responses), samples.action_mask.device
        scored, scores, parts = np.zeros(count, dtype=np.bool_), np.zeros(count), {}
        if asked:
            if early is None:
                columns = {name: [column[i] for i in asked] for name, column in prompts.columns.items()}
                ids, sampled = [prompts.ids[i] for i in asked], [rows[i] for i in asked]
                reasons = samples.finish_reasons[asked].tolist()
                columns |= sampled_columns(self.reward, self.card.codec, ids, sampled, reasons)
                result = self.reward([prompts.texts[i] for i in asked], [responses[i] for i in asked], columns)
            else:
                result = early.result(asked)
            scored[asked] = getattr(result, "scored", True)
            scores[asked] = result.scores
            for name, part in result.parts.items():
                parts[name] = np.zeros(count)
                parts[name][asked] = part
        return Scored(
            samples,
            prompts.texts,
            responses,
            torch.tensor(np.where(scored, scores, 0.0), dtype=torch.float32, device=device),
            {name: torch.tensor(part, dtype=torch.float32, device=device) for name, part in parts.items()},
            torch.tensor(scored, device=device),
        )

    def greedy_scores(self, prompts: PromptBatch) -> Tensor:
        """Return the score of the greedy answer to each row's prompt, (B,), NaN where it has none.

        One answer is decoded per group.
        """
        first = {group: row for row, group in reversed(list(enumerate(prompts.groups)))}
        chosen = prompts.select([first[group] for group in sorted(first)])
        maker = replace(self, spec=replace(self.spec, temperature=0.0))
        places = {group: place for place, group in enumerate(chosen.groups)}
        greedy = maker.sample(chosen, seed=0)
        scores = greedy.scores.masked_fill(~greedy.scored, torch.nan)
        return scores[[places[group] for group in prompts.groups]]

    def reference_logprobs(self, samples: Samples) -> Tensor:
        """Return the frozen reference's log-probabilities of the sampled tokens, (B, T)."""
        return score_logprobs(self.reference, samples.inputs, reference_spec(self.spec), self.token_budget)

    def reference_as_sampler(self, samples: Samples, reference_logprobs: Tensor) -> Tensor:
        """Return the reference's log-probabilities over the tokens that the sampler may draw, (B, T).

        They are ``reference_logprobs`` themselves unless the sampler forbids tokens.
        """
        if not self.spec.forbidden_ids:
            return reference_logprobs
        return score_logprobs(self.reference, samples.inputs, self.spec, self.token_budget)

    def complete(
        self,
        scored: Scored,
        reference_logprobs: Tensor,
        beta: float,
        greedy_scores: Tensor | None = None,
        version: int = 0,
    ) -> Rollout:
        """Add values and per-token rewards; ``beta`` is the KL coefficient, ``version`` the weights that sampled."""
        samples = scored.samples
        proximal = samples.sampler_logprobs if self.proximal is None else self.proximal(samples)
        declared: dict[str, Tensor] = {}
        if self.needs.reference or (self.kl.placement == "loss" and beta > 0):
            declared["reference_logprobs"] = reference_logprobs
        if self.needs.values:
            values, bootstrap = score_values(self.policy, samples.inputs, self.token_budget)
            declared |= {"values": values, "bootstrap_values": bootstrap}
        if greedy_scores is not None:
            declared["greedy_scores"] = greedy_scores
        rewards = shape_rewards(scored.scores, proximal, reference_logprobs, samples.action_mask, self.kl, beta)
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
            proximal_logprobs=proximal,
            policy_version=torch.full_like(samples.action_mask, version, dtype=torch.long),
        )
