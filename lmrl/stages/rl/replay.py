"""Replay: groups of earlier updates are learned from again, beside the new ones of an update.

Samples and scores are stored. Everything that depends on the policy is computed anew when they are replayed
(``RolloutMaker.complete``), so the importance weights of the update correct them (``lmrl.training.proximal``).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.rollout import Samples, Scored
from lmrl.algorithms.sequences import Sequences, join_records
from lmrl.errors import SettingsError
from lmrl.seeds import derive_seed, rank_share
from lmrl.stages.rl.config import ReplaySettings
from lmrl.stages.rl.resampling import with_the_same_parts


@dataclass(frozen=True)
class StoredGroup:
    """One group on the CPU, as plain values, and the update that sampled it."""

    update: int
    record: Mapping[str, Any]


class ReplayBuffer:
    """Whole groups of the last updates over all ranks: every rank holds them all, and replays its share of a choice.

    ``batch`` is the number of new groups per update over all ranks. Raises ``SettingsError`` for a share that gives no
    group, or not as many for every rank.
    """

    def __init__(self, settings: ReplaySettings, batch: int, seed: int, accelerator: Any) -> None:
        self.settings, self.seed, self.accelerator = settings, seed, accelerator
        self.wanted = round(batch * settings.share / (1 - settings.share))
        """Groups that an update replays over all ranks, where as many are stored."""
        ranks = accelerator.num_processes
        if not self.wanted or self.wanted % ranks:
            raise SettingsError(
                f"replay.share is {settings.share}, so {self.wanted} groups are replayed beside the {batch} new ones "
                f"of an update; expected at least one, and a multiple of the {ranks} processes. 0.5 replays as many "
                "as are new"
            )
        self.groups: list[StoredGroup] = []

    def mixed(self, update: int, fresh: Scored) -> tuple[Scored, dict[str, float]]:
        """Return this rank's new groups with replayed ones below them, and metrics; the new ones are stored."""
        count = min(self.wanted, len(self.groups))
        places = random.Random(derive_seed(self.seed, "replay", update)).sample(range(len(self.groups)), count)
        chosen = [self.groups[place] for place in places]
        mine = rank_share(chosen, self.accelerator.process_index, self.accelerator.num_processes)
        joined = _below(fresh, [restored(group.record, fresh.scores.device) for group in mine])
        metrics = {"replay/share": 1 - len(fresh.scores) / len(joined.scores)}
        if chosen:
            metrics["replay/age"] = sum(update - group.update for group in chosen) / count
        self._store(update, fresh)
        return joined, metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the stored groups; the same on every rank."""
        return {"groups": [(group.update, dict(group.record)) for group in self.groups]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.groups = [StoredGroup(int(update), record) for update, record in state["groups"]]

    def _store(self, update: int, fresh: Scored) -> None:
        """Store the new groups of all ranks, in their order, and drop those that are too old."""
        labels = fresh.samples.group
        rows = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
        records = [stored(fresh.select(one)) for one in rows]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            records = gather_object(records)
        kept = [group for group in self.groups if group.update > update - self.settings.window]
        self.groups = kept + [StoredGroup(update, record) for record in records]


def stored(scored: Scored) -> dict[str, Any]:
    """Return one group as plain values and tensors of its own on the CPU, which a checkpoint can hold."""
    found: dict[str, Any] = _plain(scored.narrow())
    return found


def restored(record: Mapping[str, Any], device: torch.device) -> Scored:
    """Return what ``stored`` was given, on this device."""
    moved = _moved(record, device)
    samples = moved.pop("samples")
    inputs = Sequences(**samples.pop("inputs"))
    return Scored(samples=Samples(inputs=inputs, **samples), **moved)


def _below(fresh: Scored, replayed: list[Scored]) -> Scored:
    """Return new and replayed groups as one record, in which each group has a number of its own."""
    if not replayed:
        return fresh
    first = int(fresh.samples.group.max()) + 1
    numbered = [
        replace(one, samples=replace(one.samples, group=torch.full_like(one.samples.group, first + place)))
        for place, one in enumerate(replayed)
    ]
    return join_records(with_the_same_parts([fresh, *numbered]))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(one, device) for name, one in value.items()}
    return value
