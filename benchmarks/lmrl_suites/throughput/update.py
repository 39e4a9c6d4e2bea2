"""Updates: lmrl's updater on a rollout against padded rows with all logits, the same loss and the same microbatches."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lmrl.algorithms.ops import kl_estimate
from lmrl.algorithms.rollout import Rollout
from lmrl_suites.throughput.flops import update_flops
from lmrl_suites.throughput.learner import ADAM_BETA2, BETA, STILL, Learner
from lmrl_suites.throughput.setting import Cell
from lmrl_suites.throughput.stage import Stage
from lmrl_suites.throughput.timing import Comparison, SuiteRun, compare

BASELINE = "padded"


def measure(stage: Stage, cell: Cell) -> Comparison:
    """Compare response tokens learned from per second: GRPO where there are groups, REINFORCE elsewhere."""
    learner = Learner(stage, cell, "grpo" if cell.group_size > 1 else "reinforce")
    rollout = learner.rollout()
    lengths: list[int] = rollout.action_mask.sum(1).tolist()
    tokens = sum(lengths)

    def with_lmrl(number: int) -> int:
        learner.learn(rollout)
        return tokens

    sides: dict[str, SuiteRun] = {"lmrl": with_lmrl}
    if stage.settings.takes(BASELINE):
        model = copy.deepcopy(learner.trainer.maker.policy.model)
        padded = PaddedLearner(model, stage.settings.microbatch_rows)
        batch = PaddedBatch.of(rollout, learner.trainer.updater.optimizer.advantages(rollout).advantages)

        def with_padded(number: int) -> int:
            with torch.autocast(stage.device, torch.bfloat16, enabled=stage.device == "cuda"):
                padded.update(batch)
            return tokens

        sides[BASELINE] = with_padded
    comparison = compare("response tokens", sides, stage.settings.rounds, BASELINE, stage.device)
    flops = update_flops(stage.shape, stage.settings.prompt_tokens, lengths)
    for side in comparison.sides:
        side.flops = [flops] * len(side.seconds)
    comparison.sides[0].notes["microbatch_tokens"] = learner.microbatch_tokens
    learner.close()
    return comparison


class PaddedBatch:
    """Prompts of one length with their responses, padded to the longest, and what a group's loss needs."""

    def __init__(self, ids: Tensor, mask: Tensor, advantages: Tensor, reference: Tensor) -> None:
        self.ids = ids
        self.mask = mask
        self.advantages = advantages
        self.reference = reference
        prompt = ids.shape[1] - mask.shape[1]
        self.attention = torch.cat([torch.ones_like(ids[:, :prompt]), mask.long()], dim=1)

    @classmethod
    def of(cls, rollout: Rollout, advantages: Tensor) -> PaddedBatch:
        """Return the batch of a rollout."""
        return cls(rollout.inputs.ids, rollout.action_mask, advantages, rollout.reference_logprobs)


def padded_logprobs(model: torch.nn.Module, ids: Tensor, attention: Tensor, width: int) -> Tensor:
    """Return the log-probabilities of the last ``width`` tokens of every row, (B, width), from all logits."""
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    logprobs = logits[:, -width - 1 : -1].float().log_softmax(-1)
    chosen: Tensor = logprobs.gather(-1, ids[:, -width:, None]).squeeze(-1)
    return chosen


class PaddedLearner:
    """The least that learns as GRPO does: full logits, log-softmax, the clipped surrogate with the KL, one AdamW step.

    Advantages are given, and nothing is logged, both in its favour.
    """

    def __init__(self, model: torch.nn.Module, microbatch_rows: int, learning_rate: float = STILL) -> None:
        self.model = model
        self.rows = microbatch_rows
        betas = (0.9, ADAM_BETA2)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=betas, weight_decay=0.0)

    def update(self, batch: PaddedBatch) -> None:
        """Take one step."""
        self.accumulate(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def accumulate(self, batch: PaddedBatch) -> None:
        """Compute the gradient of the mean over rows of each row's mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        count = len(batch.ids)
        for start in range(0, count, self.rows):
            part = slice(start, start + self.rows)
            mask, advantages = batch.mask[part], batch.advantages[part]
            now = padded_logprobs(self.model, batch.ids[part], batch.attention[part], mask.shape[1])
            ratio = (now - now.detach()).exp()
            surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            losses = (BETA * kl_estimate(now, batch.reference[part], "k3") - surrogate).masked_fill(~mask, 0)
            ((losses.sum(1) / mask.sum(1).clamp_min(1)).sum() / count).backward()
