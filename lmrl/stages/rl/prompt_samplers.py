"""Prompt samplers that ship: shuffled, from easy to hard by a column, and by what the scores of a prompt say."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmrl.algorithms.prompts import PromptPool, PromptResults, PromptSampler
from lmrl.errors import SettingsError, unknown
from lmrl.plugins.specs import PromptSamplerSpec
from lmrl.seeds import derive_seed
from lmrl.training.settings import require_at_least


@dataclass
class ShuffledSettings:
    """Every prompt once per epoch, each epoch shuffled anew; there is nothing to set."""


@dataclass
class CurriculumSettings:
    """Prompts from easy to hard: a share of them at first, all of them in the end."""

    column: str = ""
    """Column of the data with a number per prompt that says how hard it is."""
    ascending: bool = True
    """Small numbers are easy; false: large ones are."""
    start: float = 0.2
    """Share of the prompts, the easiest ones, that the first update draws from."""
    pace: int = 100
    """Updates over which that share grows to all prompts."""

    def __post_init__(self) -> None:
        require_at_least("prompt_sampler.curriculum", self, {"pace": 1})
        if not 0 < self.start <= 1:
            raise SettingsError(f"prompt_sampler.curriculum.start is {self.start}; expected a share above 0, at most 1")


class Curriculum(PromptSampler):
    """Draws without repetition from the easiest prompts, whose share grows linearly (Bengio et al. 2009)."""

    settings: CurriculumSettings

    def __init__(self, settings: CurriculumSettings, pool: PromptPool) -> None:
        super().__init__(settings, pool)
        require_enough("curriculum", pool)
        numbers = _numbers(settings.column, pool)
        sign = 1 if settings.ascending else -1
        self.order = sorted(range(len(pool)), key=lambda index: (sign * numbers[index], index))

    def open(self, update: int) -> list[int]:
        """Return the prompts that this update draws from, at least as many as it needs."""
        start, pace = self.settings.start, self.settings.pace
        share = min(1.0, start + (1 - start) * (update - 1) / pace)
        return self.order[: max(self.pool.batch, math.ceil(share * len(self.order)))]

    def indices(self, update: int) -> Sequence[int]:
        """Return different prompts among those that are open."""
        generator = random.Random(derive_seed(self.pool.seed, "curriculum", update))
        return generator.sample(self.open(update), self.pool.batch)

    def further(self, update: int, number: int, groups: Sequence[int]) -> Sequence[int]:
        """Return any prompt that is open."""
        found = self.open(update)
        seeds = (derive_seed(self.pool.seed, "further curriculum", update, number, group) for group in groups)
        return [random.Random(seed).choice(found) for seed in seeds]


@dataclass
class DifficultySettings:
    """Prompts whose scores differ between responses are drawn more often than those that are always or never solved."""

    measure: Literal["spread", "solve_rate"] = "spread"
    """spread: standard deviation of a group's scores. solve_rate: 4 p (1 - p) of its mean score p, for scores from 0
    to 1; it is known with one response per prompt, too."""
    power: float = 1.0
    """Exponent of a prompt's estimate in its weight; 0 draws all prompts alike."""
    rate: float = 0.5
    """Share of a new observation in the estimate."""
    forgetting: float = 0.02
    """Share of the way that an estimate goes back in each update to that of a prompt nobody has tried."""
    floor: float = 0.05
    """Least estimate, as a share of that of a prompt nobody has tried: nothing is given up for good."""

    def __post_init__(self) -> None:
        require_at_least("prompt_sampler.difficulty", self, {"power": 0, "forgetting": 0})
        for name in ("rate", "floor"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise SettingsError(
                    f"prompt_sampler.difficulty.{name} is {value}; expected a number above 0, at most 1"
                )
        if self.forgetting > 1:
            raise SettingsError(f"prompt_sampler.difficulty.forgetting is {self.forgetting}; expected at most 1")


class Difficulty(PromptSampler):
    """Draws without repetition, weighted by an estimate of what a prompt's scores say.

    A prompt that nobody has tried, or whose group had no score, has the estimate 1, the largest. Estimates are spreads
    as a share of the largest spread seen so far, or 4 p (1 - p).
    """

    settings: DifficultySettings

    def __init__(self, settings: DifficultySettings, pool: PromptPool) -> None:
        super().__init__(settings, pool)
        require_enough("difficulty", pool)
        if settings.measure == "spread" and pool.group_size < 2:
            raise SettingsError(
                "prompt_sampler.difficulty.measure is spread, but train.group_size is 1, and the score of one response "
                "has no spread; set train.group_size=2 or more, or measure=solve_rate"
            )
        self.estimates: dict[int, tuple[float, int]] = {}
        """Of each prompt that was scored: the estimate, and the update that it is of."""
        self.largest = 0.0

    def weights(self, update: int) -> list[float]:
        """Return every prompt's weight in this update."""
        return [max(self._estimate(index, update), self.settings.floor) ** self.settings.power for index in self._all]

    def indices(self, update: int) -> Sequence[int]:
        """Return different prompts, each next one with a chance in proportion to its weight."""
        generator = random.Random(derive_seed(self.pool.seed, "difficulty", update))
        # Of Efraimidis and Spirakis (2006): the largest keys u ** (1 / weight) are a weighted sample.
        keys = [math.log(1 - generator.random()) / weight for weight in self.weights(update)]
        return sorted(self._all, key=lambda index: keys[index], reverse=True)[: self.pool.batch]

    def further(self, update: int, number: int, groups: Sequence[int]) -> Sequence[int]:
        """Return a prompt for each group, with a chance in proportion to its weight."""
        weights = self.weights(update)
        seeds = (derive_seed(self.pool.seed, "further difficulty", update, number, group) for group in groups)
        return [random.Random(seed).choices(self._all, weights)[0] for seed in seeds]

    def observe(self, results: PromptResults) -> None:
        """Move the estimates of prompts that have scores."""
        rows = list(zip(results.indices, results.means, results.spreads, results.scored, strict=True))
        self.largest = max([self.largest, *(spread for _, _, spread, scored in rows if scored)])
        for index, mean, spread, scored in rows:
            if not scored:
                continue
            if self.settings.measure == "spread":
                found = spread / self.largest if self.largest else 0.0
            else:
                found = 4 * (solved := min(1.0, max(0.0, mean))) * (1 - solved)
            before = self._estimate(index, results.update)
            self.estimates[index] = (before + self.settings.rate * (found - before), results.update)

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates."""
        return {"estimates": {index: list(one) for index, one in self.estimates.items()}, "largest": self.largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the estimates."""
        self.estimates = {int(index): (float(one), int(at)) for index, (one, at) in state["estimates"].items()}
        self.largest = float(state["largest"])

    @property
    def _all(self) -> range:
        return range(len(self.pool))

    def _estimate(self, index: int, update: int) -> float:
        if index not in self.estimates:
            return 1.0
        estimate, at = self.estimates[index]
        return 1.0 + (estimate - 1.0) * (1 - self.settings.forgetting) ** (update - at)


def require_enough(name: str, pool: PromptPool) -> None:
    """Raise ``SettingsError`` if an update needs more different prompts than there are."""
    if len(pool) < pool.batch:
        raise SettingsError(
            f"prompt_sampler.name is {name!r}, which draws {pool.batch} different prompts per update, but there are "
            f"{len(pool)}; lower train.prompts_per_update, bring more prompts, or set prompt_sampler.name=shuffled"
        )


def builtin_specs() -> Iterable[PromptSamplerSpec]:
    """Return the records of the samplers that ship."""
    return [
        PromptSamplerSpec("shuffled", _shuffled, ShuffledSettings, "Every prompt once per epoch, each shuffled anew"),
        PromptSamplerSpec("curriculum", Curriculum, CurriculumSettings, "From easy to hard, by a column of the data"),
        PromptSamplerSpec("difficulty", Difficulty, DifficultySettings, "Prefers prompts whose scores are informative"),
    ]


def _shuffled(settings: ShuffledSettings, pool: PromptPool) -> PromptSampler:
    from lmrl.stages.rl.source import Shuffled

    return Shuffled(settings, pool)


def _numbers(column: str, pool: PromptPool) -> list[float]:
    """Return a column's numbers; raises ``SettingsError`` for a column that is not there or holds something else."""
    if column not in pool.columns:
        raise SettingsError("prompt_sampler.curriculum.column: " + unknown("column", column, pool.columns))
    found = []
    for index, value in enumerate(pool.columns[column]):
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            found.append(math.nan)
        if math.isnan(found[-1]):
            raise SettingsError(
                f"prompt_sampler.curriculum.column is {column!r}, which holds {value!r} for the prompt "
                f"{pool.texts[index][:60]!r}; expected a number for every prompt"
            )
    return found
