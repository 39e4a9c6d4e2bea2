"""Answers in order of preference, out of rows of any known shape: pairs, N-way rankings, trees, ratings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lmrl.data.layouts.conversations import opening
from lmrl.data.layouts.reading import Answered, Skip
from lmrl.data.layouts.rows import RowSettings, Tally, as_asked, columns_of, load
from lmrl.data.layouts.shapes import Row, Shape
from lmrl.data.loading.sources import Source
from lmrl.data.records import Answer, Ranking
from lmrl.data.splitting import digest_of, held_out_places, others
from lmrl.text.conversation import variables_of


@dataclass(frozen=True)
class RankingSet:
    """Rankings, with what the rows were taken for and what was left out.

    ``skipped`` counts the rows left out by reason, ``notes`` says the same in sentences with the first row of each.
    """

    rankings: list[Ranking]
    shape: str = ""
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rankings)

    def select(self, indices: Sequence[int]) -> RankingSet:
        """Return the rankings at these indices, in this order; an index may come more than once."""
        return replace(self, rankings=[self.rankings[index] for index in indices])

    def split(self, held_out: float, seed: int = 0) -> tuple[RankingSet, RankingSet]:
        """Return (training, held-out) rankings; ``held_out`` is a count, or a share below 1.

        Membership depends on the seed and the prompt alone, as in ``PromptSet.split``: equal prompts, and conversations
        that begin alike (the groups of one tree), stay on one side.
        """
        keys = [opening(ranking.prompt) for ranking in self.rankings]
        chosen = held_out_places(keys, held_out, seed, "rankings")
        return self.select(others(chosen, len(self))), self.select(chosen)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rankings with their columns: a resumed run compares it to refuse changed data."""
        return digest_of(
            [
                _plain(ranking.prompt),
                [_plain(item) for item in ranking.completions],
                ranking.ranks,
                ranking.scores,
                dict(ranking.columns),
            ]
            for ranking in self.rankings
        )


def load_rankings(
    source: Source | None = None, settings: RowSettings | None = None, setting: str = "data"
) -> RankingSet:
    """Read rankings of answers from a file, a list of rows, a saved folder or the hub.

    ``source`` defaults to ``settings.path``, and ``setting`` names its section in messages.
    The shape is recognised by the columns (``docs/datasets.md`` has them
    all). Left out and counted: answers that all tie, one answer at two ranks (chosen equal to rejected), a best answer
    that is empty, scores that are not finite, and rows that cannot be read.

    Raises ``DataError`` when the source is missing, broken, of an unknown shape, or no row is left.
    """
    settings = settings or RowSettings()

    def make(answered: Answered, row: Row, shape: Shape, tally: Tally) -> Ranking:
        prompt, completions = as_asked(answered, settings.chat, shape)
        _check(completions, answered.ranks)
        return Ranking(prompt, completions, answered.ranks, answered.scores, columns_of(row, answered))

    found = load(source, settings, "rankings", make, setting)
    return RankingSet(found.records, found.shape, found.skipped, found.notes)


def _check(completions: Sequence[Answer], ranks: Sequence[int]) -> None:
    """Raise ``Skip`` for a ranking that says nothing, or contradicts itself."""
    if len(completions) < 2:
        raise Skip("fewer than two answers")
    places: dict[str, int] = {}
    for completion, rank in zip(completions, ranks, strict=True):
        key = completion.strip() if isinstance(completion, str) else repr(completion)
        if places.setdefault(key, rank) != rank:
            raise Skip("chosen equal to rejected" if len(completions) == 2 else "one answer at two ranks")
        # A worse answer may be empty: a reward has to know that saying nothing is worse.
        if rank == 0 and not key:
            raise Skip("a best answer that is empty")
    if len(set(ranks)) == 1:
        raise Skip("answers that all tie")


def _plain(content: Answer) -> object:
    if isinstance(content, str):
        return content
    variables = variables_of(content)
    return [*(dict(item) for item in content), *([{"variables": variables}] if variables else [])]
