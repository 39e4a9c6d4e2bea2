"""Seeds and random numbers as pure functions, so that no generator has a state that must survive a resume.

A seed derives from (run seed, purpose, numbers). The random numbers of a seed are the outputs of the generator
SplitMix64 (Steele, Lea and Flood 2014) that starts at it. A token's random number therefore depends on its request and
its place alone. Which prompts belong to which update is a function of the seed, too.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from lmrl.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a 63-bit seed that depends on all arguments and on nothing else.

    Ranks that must differ pass their rank; ranks that must agree leave it out.
    """
    text = ":".join([str(seed), purpose, *(str(number) for number in numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


GAMMA, FIRST, SECOND = (_signed(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def token_uniforms(seeds: Tensor, steps: Tensor) -> Tensor:
    """Return float64 numbers in [0, 1) for int64 ``seeds`` and ``steps`` from 0 on, of one shape or broadcast.

    >>> token_uniforms(torch.tensor([1234567]), torch.tensor([0])).item()
    0.3500930796162303
    """
    state = seeds + (steps + 1) * GAMMA  # integers wrap around at 2^64
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return _shifted(state ^ _shifted(state, 31), 11).double() * 2.0**-53


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Shift to the right and fill with zeros; torch's own shift repeats the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def response_seeds(seed: int, groups: Iterable[int], first_group: int = 0) -> list[int]:
    """Return the seeds of one-turn responses to prompts of these numbers, one number per response.

    A seed derives from ``seed``, the prompt's number and the place of the response among those to its prompt.
    ``first_group`` is added to the numbers: that of prompts on the ranks before this one.
    """
    counts: Counter[int] = Counter()
    seeds = []
    for group in groups:
        seeds.append(derive_seed(seed, "response", first_group + group, counts[group], 0))  # turn 0
        counts[group] += 1
    return seeds


def rank_share(items: Sequence[Item], rank: int, ranks: int) -> Sequence[Item]:
    """Return the part of a batch that belongs to this rank."""
    size = len(items) // ranks
    return items[rank * size : (rank + 1) * size]


@dataclass(frozen=True)
class PromptOrder:
    """The order of ``count`` prompts in batches of ``batch``: every prompt once per epoch, each epoch shuffled anew.

    Batches run across the end of an epoch, so none is short. Ranks use the same seed and take slices of one batch.
    Raises ``SettingsError`` when ``count`` or ``batch`` is below 1.
    """

    count: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("batch", self.batch)):
            if value < 1:
                raise SettingsError(f"the prompt order's {name} is {value}; expected at least 1.")

    def indices(self, update: int) -> list[int]:
        """Return the prompts' indices of one update; updates count from 0."""
        if update < 0:
            raise SettingsError(f"the update's number is {update}; updates count from 0.")
        first = update * self.batch
        places = (divmod(place, self.count) for place in range(first, first + self.batch))
        return [_permutation(self.count, self.seed, epoch)[place] for epoch, place in places]

    def epoch(self, update: int) -> float:
        """Return how often every prompt has been drawn before this update, as a fraction."""
        return update * self.batch / self.count


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    # random.Random and not numpy: numpy reserves the right to change its permutations between versions.
    order = list(range(count))
    random.Random(f"prompt order {seed} {epoch}").shuffle(order)
    return tuple(order)
