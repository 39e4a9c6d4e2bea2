"""Seeds derived from (run seed, purpose, numbers), so that no generator's state needs to survive a resume."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a 63-bit seed that depends on all arguments and on nothing else.

    Ranks that must differ pass their rank; ranks that must agree leave it out.
    """
    text = ":".join([str(seed), purpose, *(str(number) for number in numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
