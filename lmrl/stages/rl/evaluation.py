"""Evaluation of a policy on held-out prompts: reward, KL to the reference and length, each with an interval.

Changes no training state: its seeds are its own, and nothing is counted or adapted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmrl.engines.protocol import FinishReason
from lmrl.stages.rl.rollouts import PromptBatch, RolloutMaker
from lmrl.statistics.intervals import Interval, RewardScale, bootstrap_interval, group_means


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation; intervals as in `lmrl eval`, over prompts, each prompt's samples averaged first.

    ``reward`` is over scored responses, ``scored`` of them; its mean is NaN without any. ``kl`` is log pi - log pi_ref
    summed over the response, in nats per sequence; None where no reference was computed. ``texts`` are prompt and
    response of the first samples, always of the same prompts. ``rewards`` and ``shown_rewards`` are None for unscored
    responses.
    """

    reward: Interval
    kl: Interval | None
    length: Interval
    ended_share: float
    texts: list[str]
    shown_rewards: list[float | None]
    rewards: list[float | None]
    lengths: list[float]
    parts: dict[str, float]
    """Means of what the reward is made of, by name, each prompt's samples averaged first."""
    scored: int

    def metrics(self) -> dict[str, float]:
        """Return the numbers as they are logged."""
        named = {"reward": self.reward, "length": self.length}
        if self.kl is not None:
            named["kl"] = self.kl
        numbers = {f"evaluation/{name}": found.mean for name, found in named.items() if not math.isnan(found.mean)}
        for name, interval in named.items():
            if interval.is_finite:  # JSON knows no infinity
                numbers |= {f"evaluation/{name}_low": interval.low, f"evaluation/{name}_high": interval.high}
        numbers |= {f"evaluation/reward_{name}": mean for name, mean in self.parts.items()}
        return numbers | {"evaluation/ended_share": self.ended_share, "evaluation/scored": float(self.scored)}


def evaluate_policy(maker: RolloutMaker, prompts: PromptBatch, seed: int, show: int) -> Evaluation:
    """Sample the held-out prompts (all rows of one prompt share its group number) and measure."""
    scored = maker.sample(prompts, seed)
    samples = scored.samples
    groups, kl = np.asarray(prompts.groups), None
    reference = None if maker.kl.log_reference == "never" else maker.reference_logprobs(samples)
    if reference is not None:
        log_ratio = (maker.proximal_logprobs(samples) - reference).sum(1)
        kl = bootstrap_interval(_over_prompts(log_ratio, groups), seed=seed)
    reasons = samples.finish_reasons.cpu()
    ended = (reasons == int(FinishReason.EOS)) | (reasons == int(FinishReason.STOP))
    lengths = samples.inputs.action_counts
    rewards = [
        score if has else None for score, has in zip(scored.scores.tolist(), scored.scored.tolist(), strict=True)
    ]
    reward = Interval(math.nan, -math.inf, math.inf, 0)
    if seen := [score for score in rewards if score is not None]:
        scale = RewardScale(seen, declared=maker.reward.bounds, seed=seed)
        reward = scale.interval(_over_prompts(scored.scores, groups, scored.scored))
    parts = {name: _over_prompts(part, groups, ~part.isnan()) for name, part in scored.score_parts.items()}
    shown = [int(np.flatnonzero(groups == group)[0]) for group in np.unique(groups)[:show]]
    return Evaluation(
        reward=reward,
        kl=kl,
        length=bootstrap_interval(_over_prompts(lengths, groups), seed=seed),
        ended_share=float(ended.float().mean()),
        texts=[f"{scored.prompts[row]}{scored.responses[row]}" for row in shown],
        shown_rewards=[rewards[row] for row in shown],
        rewards=rewards,
        lengths=lengths.tolist(),
        parts={name: float(np.mean(means)) for name, means in parts.items() if len(means)},
        scored=len(seen),
    )


def _over_prompts(column: Tensor, groups: NDArray[np.int_], within: Tensor | None = None) -> NDArray[np.float64]:
    """Return each prompt's mean over its rows ``within`` (B,); prompts without such rows are left out."""
    rows = np.ones(len(groups), dtype=np.bool_) if within is None else within.cpu().numpy()
    return group_means(column.double().cpu().numpy()[rows], groups[rows])
