"""Rankings as rows of token ids, and the batches that a step computes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lmrl.algorithms.sequences import pad_rows, split_by_length
from lmrl.data.encoding import LeftOut, encode_all
from lmrl.data.records import Ranking, dense_ranks
from lmrl.errors import DataError
from lmrl.models.reward_rows import fitted_row, reward_row
from lmrl.text.card import ModelCard


@dataclass(frozen=True)
class RankedRows:
    """A ranking as a model reads it: a row of ids for each answer.

    ``answer_lengths`` are how many tokens each answer has, also where its row had to lose some. ``ranking`` has the
    same answers: those that were too long are left out of it, too.
    """

    rows: tuple[tuple[int, ...], ...]
    answer_lengths: tuple[int, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...]
    ranking: Ranking

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return max(map(len, self.rows))


@dataclass(frozen=True)
class EncodedRankings:
    """Rankings that a model can read, and what had to be left out of the others, by reason."""

    items: list[RankedRows]
    skipped: dict[str, int] = field(default_factory=dict)


def encode_rankings(
    rankings: Sequence[Ranking], card: ModelCard, too_long: Literal["skip", "truncate"], max_tokens: int = 0
) -> EncodedRankings:
    """Return the rows of every ranking that has two answers of different rank within the model's context.

    ``max_tokens`` above 0 makes the context shorter. Raises ``DataError`` when a conversation cannot be rendered at
    all, and when nothing is left.
    """
    if max_tokens:
        card = dataclasses.replace(card, context_length=min(card.context_length, max_tokens))
    _require_template(rankings, card)
    cuts: Counter[str] = Counter()
    unrendered = "rankings that the chat template cannot render"
    found = encode_all(rankings, lambda ranking: _encode(ranking, card, too_long, cuts), unrendered)
    skipped = {**cuts, **found.skipped}
    if rankings and not found.rows:
        reasons = "; ".join(f"{count} {reason}" for reason, count in skipped.items())
        advice = found.detail(unrendered) or "Set data.too_long = truncate, or use a model with a longer context."
        raise DataError(
            f"none of {len(rankings)} rankings can be read by {card.path}, whose context is {card.context_length} "
            f"tokens: {reasons}. {advice}"
        )
    return EncodedRankings(found.rows, skipped)


def _require_template(rankings: Sequence[Ranking], card: ModelCard) -> None:
    """Raise ``DataError`` with advice for conversations that a model without a chat template is given."""
    spoken = next((ranking for ranking in rankings if not isinstance(ranking.prompt, str)), None)
    if spoken is None or card.codec.chat_template is not None:
        return
    try:
        reward_row(card, spoken.prompt, spoken.completions[0])
    except DataError as error:
        raise DataError(f'{error} Or set data.template = "plain", which gives it one without new tokens.') from error


def _encode(ranking: Ranking, card: ModelCard, too_long: Literal["skip", "truncate"], cuts: Counter[str]) -> RankedRows:
    kept: list[int] = []
    rows: list[tuple[int, ...]] = []
    lengths: list[int] = []
    for place, completion in enumerate(ranking.completions):
        asked, answer = reward_row(card, ranking.prompt, completion)
        row, cut = fitted_row(card, asked, answer)
        if cut and too_long == "skip":
            cuts["answers too long for the context"] += 1
            continue
        if cut:
            cuts[f"{'prompts' if cut <= len(asked) else 'answers'} cut at their beginning"] += 1
        kept.append(place)
        rows.append(tuple(row))
        lengths.append(len(answer))
    ranks = dense_ranks(tuple(float(ranking.ranks[place]) for place in kept)) if kept else ()
    if len(set(ranks)) < 2:
        raise LeftOut("rankings without two answers of different rank that fit")
    scores = tuple(ranking.scores[place] for place in kept) if ranking.scores else ()
    if len(kept) < len(ranking.completions):
        completions = tuple(ranking.completions[place] for place in kept)
        ranking = dataclasses.replace(ranking, completions=completions, ranks=ranks, scores=scores)
    return RankedRows(tuple(rows), tuple(lengths), ranks, scores, ranking)


@dataclass(frozen=True)
class RankingBatch:
    """R rankings with U distinct rows.

    ``index`` (R, N) says which row each answer is, ``mask`` (R, N) where there is one. ``ids`` (U, L) and ``lengths``
    (U,) are the rows, ``pieces`` index tensors of rows of like length. ``gold`` (R, N) are the data's own scores, 0
    where they have none.
    """

    ids: Tensor
    lengths: Tensor
    pieces: list[Tensor]
    index: Tensor
    ranks: Tensor
    mask: Tensor
    gold: Tensor

    def to(self, device: torch.device) -> RankingBatch:
        """Return the batch on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return RankingBatch(**moved, pieces=[piece.to(device) for piece in self.pieces])


def collate(items: Sequence[RankedRows], piece_budget: int) -> RankingBatch:
    """Return a batch in which every distinct row stands once, cut into pieces of at most ``piece_budget`` positions."""
    places: dict[tuple[int, ...], int] = {}
    for item in items:
        for row in item.rows:
            places.setdefault(row, len(places))
    width = max(len(item.rows) for item in items)
    index = torch.zeros(len(items), width, dtype=torch.long)
    ranks = torch.zeros(len(items), width, dtype=torch.long)
    mask = torch.zeros(len(items), width, dtype=torch.bool)
    gold = torch.zeros(len(items), width)
    for number, item in enumerate(items):
        count = len(item.rows)
        index[number, :count] = torch.tensor([places[row] for row in item.rows])
        ranks[number, :count] = torch.tensor(item.ranks)
        mask[number, :count] = True
        if item.scores:
            gold[number, :count] = torch.tensor(item.scores)
    ids, lengths = pad_rows(list(places))
    return RankingBatch(ids, lengths, split_by_length(lengths, piece_budget), index, ranks, mask, gold)


def split_by_tokens(items: Sequence[RankedRows], token_budget: int) -> list[list[RankedRows]]:
    """Return the rankings in groups of at most ``token_budget`` tokens, of like length; a ranking stays whole."""
    groups: list[list[RankedRows]] = []
    used = 0
    for item in sorted(items, key=lambda item: item.longest):
        size = sum(map(len, item.rows))
        if not groups or used + size > token_budget:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size
    return groups
