"""Data for optimizers that do not sample: pairs, labelled and rewarded answers as batches of token ids.

Rows are encoded once, as fine-tuning and reward models encode them. The reference's log-probabilities of a row are
computed when it is first drawn and kept, so no epoch repeats them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.experience import (
    DemonstrationBatch,
    Experience,
    LabelledBatch,
    PairBatch,
    Responses,
    TrajectoryBatch,
)
from lmrl.algorithms.sequences import Sequences
from lmrl.data.encoding import LeftOut, encode_all
from lmrl.data.logged import load_logged
from lmrl.data.notes import log_notes
from lmrl.data.prompts import dropped_keys
from lmrl.data.rankings import load_rankings
from lmrl.data.records import Answer, Prompt
from lmrl.data.splitting import digest_of
from lmrl.errors import DataError
from lmrl.plugins.specs import Needs
from lmrl.seeds import PromptOrder, rank_share
from lmrl.stages.rl.config import LearningData
from lmrl.stages.rl.demonstrations import RAW, load_demonstrations, raw_row
from lmrl.text.card import ModelCard
from lmrl.text.chat_template import response_row
from lmrl.text.turns import holds_turns, with_turn_end
from lmrl.training.trainer import Drawn

logger = logging.getLogger(__name__)

Row = tuple[tuple[int, ...], tuple[int, ...]]
"""The ids of a prompt and of an answer, its end included."""
Scorer = Callable[[Sequences], Tensor]
"""Returns the reference's log-probabilities, (B, T)."""


@dataclass(frozen=True)
class Item:
    """Unit of one loss: the rows (chosen and rejected, or one answer), and the reward of each, where there are any."""

    rows: tuple[Row, ...]
    rewards: tuple[float, ...] = ()


class OfflineData:
    """Items of one kind of experience; ``batch(indices)`` makes of them what ``loss`` is given."""

    def __init__(
        self,
        items: Sequence[Item],
        needs: Needs,
        device: torch.device,
        context_length: int | None = None,
    ) -> None:
        self.items = list(items)
        self.needs = needs
        self.scorer: Scorer | None = None
        """Computes the reference's log-probabilities, where the optimizer needs them."""
        self.device = device
        self.context_length = context_length
        self.has_scores = all(item.rewards for item in self.items)
        self._reference: dict[Row, Tensor] = {}

    def __len__(self) -> int:
        return len(self.items)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rows: a resumed run refuses changed data.

        Of pairs, the order of preference is in it and the scores are not, as in the runs of version 0.1.
        """
        alone = self.needs.experience != "preferences"
        return digest_of(
            [[list(map(list, row)) for row in item.rows], item.rewards[0] if alone else 0.0] for item in self.items
        )

    def in_turns(self, card: ModelCard) -> bool:
        """Return whether the rows are conversations: they hold the end-of-turn token of the card's template."""
        return holds_turns(card, (ids for item in self.items for row in item.rows for ids in row))

    def batch(self, indices: Sequence[int]) -> Experience:
        """Return the items at these indices."""
        items = [self.items[index] for index in indices]
        if self.needs.experience == "preferences":
            return PairBatch(self._side(items, 0), self._side(items, 1))
        rows = [item.rows[0] for item in items]
        if self.needs.experience == "demonstrations":
            return DemonstrationBatch(self._responses(rows))
        if self.needs.experience == "trajectories":
            return self._trajectories(rows, [item.rewards[0] for item in items])
        # The answer of the next row under this row's prompt (Ethayarajh et al. 2024, sec. 4.1), as far as it has room.
        mismatched = [
            (row[0], other[1][: self._room(row)]) for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
        ]
        desirable = torch.tensor([item.rewards[0] > 0 for item in items], device=self.device)
        return LabelledBatch(self._responses(rows), desirable, self._responses(mismatched))

    def _side(self, items: Sequence[Item], place: int) -> Responses:
        """Return the chosen (0) or rejected (1) answers, with their scores where all pairs of the data have them."""
        responses = self._responses([item.rows[place] for item in items])
        if not self.has_scores:
            return responses
        scores = torch.tensor([item.rewards[place] for item in items], device=self.device)
        return replace(responses, columns={"scores": scores})

    def _trajectories(self, rows: Sequence[Row], rewards: Sequence[float]) -> TrajectoryBatch:
        """Return answers with their rewards on the last token, which ends each of them."""
        responses = self._responses(rows)
        last = responses.inputs.action_counts[:, None] - 1
        column = torch.tensor(rewards, device=self.device)[:, None]
        spread = torch.zeros(responses.action_mask.shape, device=self.device).scatter(1, last, column)
        return TrajectoryBatch(responses, spread, torch.ones(len(rows), dtype=torch.bool, device=self.device))

    def _room(self, row: Row) -> int | None:
        return None if self.context_length is None else self.context_length - len(row[0])

    def _responses(self, rows: Sequence[Row]) -> Responses:
        inputs = Sequences.of_pairs(rows, self.device)
        mask = inputs.action_mask()
        declared = {} if self.scorer is None else {"reference_logprobs": self._scored(rows, inputs)}
        return Responses(inputs, mask, declared)

    def _scored(self, rows: Sequence[Row], inputs: Sequences) -> Tensor:
        assert self.scorer is not None
        new = [place for place, row in enumerate(rows) if row not in self._reference]
        if new:
            found = self.scorer(inputs.select(torch.tensor(new, device=self.device))).cpu()
            for place, logprobs in zip(new, found, strict=True):
                self._reference[rows[place]] = logprobs[: len(rows[place][1])].clone()
        table = torch.zeros(len(rows), inputs.width)
        for place, row in enumerate(rows):
            table[place, : len(row[1])] = self._reference[row]
        return table.to(self.device)


class OrderedData:
    """Data in an order: this rank's items of step 0, 1, ...

    The last digits of a reference's log-probability depend on the rows that it is computed beside. So that a resumed
    run on a CPU has those of the undisturbed one, the rows of earlier steps are scored as these steps did.
    """

    def __init__(self, data: OfflineData, order: PromptOrder, accelerator: Any) -> None:
        self.data, self.order, self.accelerator = data, order, accelerator
        self._drawn = 0

    def batch(self, step: int) -> Experience:
        """Return this rank's items of a step."""
        with self.accelerator.autocast():
            if self.data.scorer is not None and self.data.device.type == "cpu":
                for earlier in range(self._drawn, step):
                    self.data.batch(self._share(earlier))
            self._drawn = max(self._drawn, step + 1)
            return self.data.batch(self._share(step))

    def _share(self, step: int) -> Sequence[int]:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        return rank_share(self.order.indices(step), rank, ranks)


class DataSource:
    """The source of a run that learns from data: each update takes the next items of ``order``.

    ``check`` (batch) is called with the first batch.
    """

    def __init__(self, data: OrderedData, check: Callable[[Experience], None]) -> None:
        self.data, self.check = data, check
        self._checked = False

    def next(self, updates: int) -> Drawn:
        """Return this rank's share of the data of the next update."""
        start, order = time.perf_counter(), self.data.order
        batch = self.data.batch(updates)
        if not self._checked:
            self.check(batch)
            self._checked = True
        tokens = float(batch.row_lengths.sum()) * self.data.accelerator.num_processes
        return Drawn(batch, {"time/score_seconds": time.perf_counter() - start}, tokens, order.batch)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the order of data is a function of the seed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: data keep nothing running."""


def load_offline(
    settings: LearningData, source: Any, card: ModelCard, needs: Needs, device: torch.device
) -> OfflineData:
    """Read and encode what the optimizer learns from; what does not fit the context is left out and counted.

    Raises ``DataError`` when the data cannot be read, are of another kind, or nothing is left.
    """
    records = READERS[needs.experience](settings, source)
    card = with_turn_end(card)  # a text that ends with the end of a turn gets no EOS behind it

    def encode(record: Record) -> Item:
        prompt, answers, rewards = record
        raw = needs.experience == "demonstrations" and prompt == RAW
        rows = tuple(raw_row(card, str(answer)) if raw else _row(card, prompt, answer) for answer in answers)
        if any(len(asked) + len(answer) > card.context_length for asked, answer in rows):
            raise LeftOut("too long for the context")
        return Item(rows, rewards)

    found = encode_all(records, encode, "cannot be rendered")
    conversations = [item for prompt, answers, _ in records for item in (prompt, *answers)]
    log_notes(logger, dropped_keys(card.codec, conversations, "the data"))
    if not found.rows:
        raise DataError(
            f"none of {len(records)} rows can be read by {card.path}, whose context is {card.context_length} tokens: "
            f"{found.reasons()}. {found.detail('cannot be rendered')}"
        )
    if found.skipped:
        left_out = len(records) - len(found.rows)
        logger.warning("%d of %d rows were left out: %s", left_out, len(records), found.reasons())
    return OfflineData(found.rows, needs, device, card.context_length)


Record = tuple[Prompt, tuple[Answer, ...], tuple[float, ...]]


def _pairs(settings: LearningData, source: Any) -> list[Record]:
    try:
        found = load_rankings(source, settings)
    except DataError as error:
        raise DataError(
            f"{error} This optimizer learns from pairs or rankings of answers. Answers that are labelled one by one "
            "make pairs only where a prompt has a good and a bad one; other optimizers learn from such labels."
        ) from error
    log_notes(logger, found.notes)
    records: list[Record] = []
    for ranking in found.rankings:
        pairs = ranking.pairs()
        if settings.pairs == "best_worst":
            pairs = [(ranking.ranks.index(0), ranking.ranks.index(max(ranking.ranks)))]
        for pair in pairs:
            rewards = tuple(ranking.scores[place] for place in pair if ranking.scores)
            records.append((ranking.prompt, tuple(ranking.completions[place] for place in pair), rewards))
    return records


def _labelled(settings: LearningData, source: Any) -> list[Record]:
    found = load_logged("label", source, settings)
    log_notes(logger, found.notes)
    good = sum(answer.reward > 0 for answer in found.answers)
    if good in (0, len(found)):
        raise DataError(
            f"all {len(found)} answers are labelled {'good' if good else 'bad'}; expected both kinds, because the loss "
            "sets one against the other. `lmrl sft` imitates good answers alone."
        )
    return [(answer.prompt, (answer.completion,), (answer.reward,)) for answer in found.answers]


def _rewarded(settings: LearningData, source: Any) -> list[Record]:
    try:
        found = load_logged("reward", source, settings)
    except DataError as error:
        raise DataError(
            f"{error} This optimizer learns from answers with the reward that each got: give rows with prompt, "
            "completion and reward, or rankings with scores, as `lmrl prefer` writes them when a reward ranks."
        ) from error
    log_notes(logger, found.notes)
    rewards = {answer.reward for answer in found.answers}
    if len(rewards) == 1:
        raise DataError(
            f"all {len(found)} answers have the reward {rewards.pop():g}; expected different ones, because there is "
            "nothing to prefer among them. `lmrl sft` imitates answers that are all good."
        )
    return [(answer.prompt, (answer.completion,), (answer.reward,)) for answer in found.answers]


READERS: dict[str, Callable[[LearningData, Any], list[Record]]] = {
    "preferences": _pairs,
    "labelled": _labelled,
    "trajectories": _rewarded,
    "demonstrations": load_demonstrations,
}
"""Readers of the records of each kind of experience."""


def _row(card: ModelCard, prompt: Prompt, answer: Answer) -> Row:
    asked, said = response_row(card.codec, card.eos_ids, prompt, answer)
    if not asked:
        raise DataError("a prompt without tokens; expected at least one.")
    return tuple(asked), tuple(said)
