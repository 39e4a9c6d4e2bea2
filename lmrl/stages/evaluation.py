"""Evaluation of a policy on held-out prompts: reward, KL to the reference and length, each with an interval.

Changes no training state: its seeds are its own, and nothing is counted or adapted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lmrl.sampling.finish import FinishReason
from lmrl.stages.rollouts import PromptBatch, RolloutMaker
from lmrl.statistics import Interval, RewardScale, Values, bootstrap_interval, group_means


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found; intervals as in `lmrl eval`, over prompts, each prompt's samples averaged first.

    ``kl`` is log pi - log pi_ref summed over the response, in nats per sequence. ``texts`` are prompt and response of
    the first samples, always of the same prompts.
    """

    reward: Interval
    kl: Interval
    length: Interval
    ended_share: float
    texts: list[str]
    shown_rewards: list[float]
    rewards: list[float]
    lengths: list[float]
    parts: dict[str, float]
    """Means of what the reward is made of, by name, each prompt's samples averaged first."""

    def metrics(self) -> dict[str, float]:
        """Return the numbers as they are logged."""
        named = {"reward": self.reward, "kl": self.kl, "length": self.length}
        numbers = {f"evaluation/{name}": interval.mean for name, interval in named.items()}
        for name, interval in named.items():
            if interval.is_finite:  # JSON knows no infinity
                numbers |= {f"evaluation/{name}_low": interval.low, f"evaluation/{name}_high": interval.high}
        numbers |= {f"evaluation/reward_{name}": mean for name, mean in self.parts.items()}
        return numbers | {"evaluation/ended_share": self.ended_share}


def evaluate_policy(maker: RolloutMaker, prompts: PromptBatch, seed: int, show: int) -> Evaluation:
    """Sample the held-out prompts (all rows of one prompt share its group number) and measure."""
    scored = maker.sample(prompts, seed)
    samples = scored.samples
    log_ratio = samples.behavior_logprobs - maker.reference_logprobs(samples)
    groups = np.asarray(prompts.groups)
    reasons = samples.finish_reasons.cpu()
    ended = (reasons == int(FinishReason.EOS)) | (reasons == int(FinishReason.STOP))
    lengths = samples.inputs.response_lengths
    scale = RewardScale(scored.scores.tolist(), declared=maker.reward.bounds, seed=seed)

    def over_prompts(column: Tensor) -> Values:
        return group_means(column.double().cpu().numpy(), prompts.groups)

    shown = [int(np.flatnonzero(groups == group)[0]) for group in np.unique(groups)[:show]]
    return Evaluation(
        reward=scale.interval(over_prompts(scored.scores)),
        kl=bootstrap_interval(over_prompts(log_ratio.sum(1)), seed=seed),
        length=bootstrap_interval(over_prompts(lengths), seed=seed),
        ended_share=float(ended.float().mean()),
        texts=[f"{scored.prompts[row]}{scored.responses[row]}" for row in shown],
        shown_rewards=[float(scored.scores[row]) for row in shown],
        rewards=scored.scores.tolist(),
        lengths=lengths.tolist(),
        parts={name: float(np.mean(over_prompts(part))) for name, part in scored.score_parts.items()},
    )
