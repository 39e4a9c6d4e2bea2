"""Whole batches: sample, score, evaluate the reference and update once, episodes per second end to end.

TRL's trainer is the baseline; without it the plain batch is, ``generate`` with a padded update.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from lmrl.algorithms.ops import group_normalise
from lmrl.algorithms.sequences import lengths_to_mask
from lmrl_suites.throughput import trl_peer
from lmrl_suites.throughput.flops import episode_flops
from lmrl_suites.throughput.learner import Learner
from lmrl_suites.throughput.sampling import generate, response_lengths
from lmrl_suites.throughput.setting import MIDDLE, Cell
from lmrl_suites.throughput.shapes import ShareOfWords
from lmrl_suites.throughput.stage import Stage
from lmrl_suites.throughput.timing import Comparison, Host, SuiteRun, compare
from lmrl_suites.throughput.update import PaddedBatch, PaddedLearner, padded_logprobs

PLAIN = "plain"


def measure(stage: Stage, cell: Cell) -> Comparison:
    """Compare episodes per second."""
    lengths_of: dict[str, list[list[int]]] = {"lmrl": [], PLAIN: []}
    skipped: dict[str, str] = {}
    learner = Learner(stage, cell, cell.algorithm)

    def with_lmrl(number: int) -> int:
        lengths_of["lmrl"].append(learner.step())
        return cell.rows

    sides: dict[str, SuiteRun] = {"lmrl": with_lmrl}
    peer = f"trl_{cell.algorithm}"
    trainer: trl_peer.TRLTrainer | None = None
    if stage.settings.takes(peer):
        reason = trl_peer.missing()
        if reason is not None:
            skipped[peer] = reason
        else:
            trainer = trl_peer.TRLTrainer(stage, cell, cell.algorithm)
    if takes_plain(stage, cell, trainer is not None):
        plain = PlainBatch(stage, cell)

        def with_plain(number: int) -> int:
            lengths_of[PLAIN].append(plain.step(number))
            return cell.rows

        sides[PLAIN] = with_plain
    baseline = peer if trainer is not None else PLAIN
    host = Host(peer, trainer.train, cell.rows) if trainer is not None else None
    try:
        comparison = compare("episodes", sides, stage.settings.rounds, baseline, stage.device, host=host)
    finally:
        learner.close()
    if trainer is not None:
        lengths = trainer.lengths[1:]
        comparison.sides[-1].notes["mean_length"] = sum(lengths) / len(lengths)
    comparison.skipped = skipped
    _note(stage, cell, comparison, lengths_of, learner)
    return comparison


def takes_plain(stage: Stage, cell: Cell, with_trl: bool) -> bool:
    """Say whether the plain batch takes part: with GRPO, and beside TRL only where it is cheap or all is asked for."""
    large = stage.shape.parameters > MIDDLE and not stage.settings.complete
    return cell.algorithm == "grpo" and stage.settings.takes(PLAIN) and not (large and with_trl)


def _note(
    stage: Stage, cell: Cell, comparison: Comparison, lengths_of: dict[str, list[list[int]]], learner: Learner
) -> None:
    for side in comparison.sides:
        # Nobody asks TRL for its lengths: at full length they are known, elsewhere its work is not.
        known = lengths_of.get(side.name) or []
        if not known and cell.lengths == "full":
            known = [[stage.settings.new_tokens] * cell.rows] * (len(side.seconds) + 1)
        for lengths in known[1:]:
            distinct = cell.rows // cell.group_size
            side.flops.append(episode_flops(stage.shape, stage.settings.prompt_tokens, distinct, lengths))
    comparison.sides[0].notes["microbatch_tokens"] = learner.microbatch_tokens
    for side in comparison.sides:
        if lengths_of.get(side.name):
            drawn = [length for batch in lengths_of[side.name][1:] for length in batch]
            side.notes["mean_length"] = sum(drawn) / len(drawn)


class PlainBatch:
    """A loop of one's own: ``generate``, the reference over padded rows, a padded GRPO step."""

    def __init__(self, stage: Stage, cell: Cell) -> None:
        from transformers import AutoTokenizer

        from lmrl.models import load

        self.stage, self.cell = stage, cell
        model: Any = load(stage.folder, device=stage.device, dtype=torch.float32).model
        self.learner = PaddedLearner(model, stage.settings.microbatch_rows)
        self.reference = copy.deepcopy(self.learner.model).requires_grad_(False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(stage.folder), trust_remote_code=False)
        self.reward = ShareOfWords(stage.shape.vocabulary // 4)
        self.ids = torch.tensor(stage.prompts(cell), device=stage.device)
        groups = torch.arange(cell.rows // cell.group_size, device=stage.device)
        self.group = groups.repeat_interleave(cell.group_size)

    def step(self, number: int) -> list[int]:
        """Sample, score and learn once; return every response's length."""
        torch.manual_seed(number)
        with torch.autocast(self.stage.device, torch.bfloat16, enabled=self.stage.device == "cuda"):
            eos_ids = self.stage.spec(self.cell.lengths).eos_ids
            response = generate(self.learner.model, self.ids, eos_ids, self.stage.settings.new_tokens)
            lengths = response_lengths(response, eos_ids)
            mask = lengths_to_mask(lengths, response.shape[1])
            kept = [row[:length] for row, length in zip(response.tolist(), lengths.tolist(), strict=True)]
            scores = self.reward.scores(self.tokenizer.batch_decode(kept, skip_special_tokens=True))
            returns = torch.tensor(scores, device=self.stage.device)
            advantages = group_normalise(returns, self.group, True, returns)[:, None] * mask
            ids = torch.cat([self.ids, response], dim=1)
            batch = PaddedBatch(ids, mask, advantages, torch.zeros_like(advantages))
            with torch.no_grad():
                parts = zip(ids.split(self.learner.rows), batch.attention.split(self.learner.rows), strict=True)
                width = mask.shape[1]
                batch.reference = torch.cat(
                    [padded_logprobs(self.reference, rows, attention, width) for rows, attention in parts]
                )
            self.learner.update(batch)
        return [int(length) for length in lengths.tolist()]
