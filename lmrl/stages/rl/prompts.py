"""Prompts of an RL run: batches of rows, and the stream that they come from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmrl.data import PromptSet
from lmrl.engines.batch import requests_of
from lmrl.engines.protocol import Request, SamplingSpec
from lmrl.seeds import derive_seed
from lmrl.training.schedule import PromptOrder


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


@dataclass(frozen=True)
class PromptStream:
    """Training prompts in the order of a run, ``group_size`` responses to each; ranks take shares of every batch."""

    prompts: PromptSet
    ids: list[list[int]]
    order: PromptOrder
    group_size: int
    seed: int
    rank: int = 0
    ranks: int = 1

    @property
    def rows(self) -> int:
        """Rows of one update over all ranks."""
        return self.order.batch * self.group_size

    @property
    def first_group(self) -> int:
        """The number of groups on the ranks before this one."""
        return self.rank * (self.order.batch // self.ranks)

    def batch(self, update: int) -> PromptBatch:
        """Return this rank's share of the prompts of an update (counted from 1)."""
        return PromptBatch.of(self.prompts, self.ids, self.share(update), self.group_size, self.first_group)

    def share(self, update: int) -> Sequence[int]:
        """Return the indices of this rank's prompts in an update (counted from 1)."""
        return share_of(self.order, update, self.rank, self.ranks)

    def further(self, update: int, number: int, groups: Sequence[int]) -> PromptBatch:
        """Return other prompts for these groups of this rank in a further round of sampling.

        The prompt of a group depends on its number in the whole batch, not on the rank.
        """
        first = self.first_group
        indices = [
            random.Random(derive_seed(self.seed, "further prompts", update, number, first + group)).randrange(
                len(self.prompts)
            )
            for group in groups
        ]
        batch = PromptBatch.of(self.prompts, self.ids, indices, self.group_size, first)
        return replace(batch, groups=[group for group in groups for _ in range(self.group_size)])


def share_of(order: PromptOrder, update: int, rank: int, ranks: int) -> Sequence[int]:
    """Return the indices that belong to this rank in an update (counted from 1)."""
    indices = order.indices(update - 1)
    size = len(indices) // ranks
    return indices[rank * size : (rank + 1) * size]
