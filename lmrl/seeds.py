"""Seeds and random numbers as pure functions, so that no generator has a state that must survive a resume.

A seed derives from (run seed, purpose, numbers). The random numbers of a seed are the outputs of the generator
SplitMix64 (Steele, Lea and Flood 2014) that starts at it. A token's random number therefore depends on its request and
its place alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
