"""Task of reward models for the shared training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lmrl.models.ranking_losses import centring, pairwise_bradley_terry, plackett_luce
from lmrl.models.reward_model import RewardModel
from lmrl.models.saving import saved_dtype
from lmrl.seeds import PromptOrder, derive_seed
from lmrl.stages.reward.config import ObjectiveSettings, RewardConfig
from lmrl.stages.reward.data import RankedRows, RankingBatch, collate, split_by_tokens
from lmrl.stages.reward.measures import HeldOut, pair_accuracy

PIECES = 4
"""A microbatch is computed in this many pieces of rows of like length, or more: little padding in each."""
SHOWN = 3
"""Held-out rankings shown as texts."""
TOGETHER = 256
"""Held-out rankings whose loss is computed at once, of scores that are known already."""


def ranking_losses(scores: Tensor, batch: RankingBatch, settings: ObjectiveSettings) -> dict[str, Tensor]:
    """Return ``objective``, the training loss of each ranking, (R,), and ``centring``, its regulariser alone."""
    if settings.loss == "plackett_luce":
        losses = plackett_luce(scores, batch.ranks, batch.mask)
    else:
        gaps = batch.gold[:, :, None] - batch.gold[:, None, :]
        losses = pairwise_bradley_terry(scores, batch.ranks, batch.mask, settings.margin + settings.score_margin * gaps)
    centre = centring(scores, batch.mask)
    return {"objective": losses + settings.centring * centre if settings.centring else losses, "centring": centre}


class RewardTask:
    """Rankings to learn, in the order of a seed, and rankings held out."""

    unit = "ranking"

    def __init__(
        self, model: RewardModel, training: Sequence[RankedRows], held_out: Sequence[RankedRows], config: RewardConfig
    ) -> None:
        self.module: nn.Module = model
        self.model = model
        self.training, self.held_out, self.config = list(training), list(held_out), config
        self.evaluated: list[Tensor] | None = None
        """Raw scores of the held-out rankings at the last evaluation."""
        self.device = next(model.parameters()).device
        self.token_budget = config.train.microbatch_tokens or (8192 if self.device.type == "cpu" else 32768)
        self.order = PromptOrder(
            len(self.training), config.train.rankings_per_step, derive_seed(config.run.seed, "rankings")
        )

    def microbatches(self, step: int, rank: int, ranks: int) -> list[RankingBatch]:
        """Return this rank's rankings of a step, grouped by length."""
        mine = self.order.indices(step - 1)[rank::ranks]
        groups = split_by_tokens([self.training[place] for place in mine], self.token_budget)
        return [collate(group, max(1, self.token_budget // PIECES)) for group in groups]

    def count(self, microbatch: RankingBatch) -> int:
        """Return the number of rankings."""
        return len(microbatch.index)

    def tokens(self, microbatch: RankingBatch) -> int:
        """Return the number of real tokens; padding is not counted."""
        return int(microbatch.lengths.sum())

    def loss(self, module: nn.Module, microbatch: RankingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over rankings of the loss, and of what is logged beside it."""
        batch = microbatch.to(self.device)
        scores = module(batch.ids, batch.lengths, batch.pieces)[batch.index]
        losses = ranking_losses(scores, batch, self.config.objective)
        with torch.no_grad():
            mean = scores.masked_fill(~batch.mask, 0).sum(1) / batch.mask.sum(1)
            accuracy = pair_accuracy(scores, batch.ranks, batch.mask)
        metrics = {"accuracy": accuracy.sum(), "score": mean.sum(), "centring": losses["centring"].sum()}
        return losses["objective"].sum(), metrics

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Return the held-out loss and the accuracy on pairs with its interval."""
        if not self.held_out:
            return {}
        scored = self.evaluated = self.score(self.held_out)
        total = 0.0
        for first in range(0, len(scored), TOGETHER):
            batch = collate(self.held_out[first : first + TOGETHER], self.token_budget)
            known = torch.cat(scored[first : first + TOGETHER])
            scores = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, known)
            total += float(ranking_losses(scores, batch, self.config.objective)["objective"].sum())
        accuracy = HeldOut.of(self.held_out, scored).accuracy()
        return {
            "loss": total / len(self.held_out),
            "accuracy": accuracy.mean,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
        }

    def score(self, items: Sequence[RankedRows]) -> list[Tensor]:
        """Return the raw scores of each ranking's answers."""
        rows = [row for item in items for row in item.rows]
        scores = self.model.score_rows(rows, self.token_budget, normalised=False)
        return list(scores.split([len(item.rows) for item in items]))

    def texts(self) -> list[str]:
        """Return a few held-out rankings with the scores of the moment."""
        shown = self.held_out[:SHOWN]
        decode = self.model.card.codec.decode_batch
        texts = []
        for item, scores in zip(shown, self.score(shown), strict=True):
            asked = [max(0, len(row) - size) for row, size in zip(item.rows, item.answer_lengths, strict=True)]
            answers = decode([row[start:] for row, start in zip(item.rows, asked, strict=True)])
            order = sorted(zip(item.ranks, scores.tolist(), answers, strict=True))
            lines = [f"rank {rank}, score {score:+.3f}: {answer}" for rank, score, answer in order]
            texts.append("\n".join([*decode([item.rows[0][: asked[0]]]), *lines]))
        return texts

    def speed(self, tokens_per_second: float) -> dict[str, float]:
        """Return nothing further."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the reward model."""
        self.model.save(folder, saved_dtype(self.config.checkpoint.dtype, self.model.stored_dtype))

    def load(self, folder: Path) -> None:
        """Read the weights back."""
        self.model.load_weights(folder)
