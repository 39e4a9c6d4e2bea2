"""Held-out rows, and the fingerprint of rows: one logic for prompts, examples and rankings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from lmrl.errors import SettingsError


def held_out_places(keys: Sequence[str], held_out: float, seed: int, what: str) -> list[int]:
    """Return the places of the rows kept for evaluation, in order; ``held_out`` is a count, or a share below 1.

    Membership depends on the seed and the key alone, so it survives a new order of the rows, and rows of one key stay
    on one side. Where repeated keys do not fit the count exactly, fewer are held out. ``what`` names the rows.
    Raises ``SettingsError`` for a count that is not a whole number or leaves nothing on one of the sides.
    """
    wanted = _count(held_out, len(keys), what)
    groups: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    chosen: list[int] = []
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"held out {seed} {key}".encode()).digest()):
        if len(chosen) + len(groups[key]) <= wanted:
            chosen += groups[key]
    if wanted and not chosen:
        raise SettingsError(
            f"held_out={held_out:g} of {len(keys)} {what}: equal prompts stay on one side, and each of the "
            f"{len(groups)} distinct ones is repeated more often than {wanted} times; give more distinct prompts."
        )
    return sorted(chosen)


def others(places: Sequence[int], count: int) -> list[int]:
    """Return the places up to ``count`` that are not among these."""
    chosen = set(places)
    return [place for place in range(count) if place not in chosen]


def _count(held_out: float, available: int, what: str) -> int:
    count = int(held_out * available) if held_out < 1 else int(held_out)
    if held_out < 0 or (held_out >= 1 and held_out != count):
        raise SettingsError(f"held_out is {held_out:g}; expected a number of {what} (64), or a share below 1 (0.1).")
    if held_out and not 1 <= count < available:
        raise SettingsError(
            f"held_out={held_out:g} keeps {count} of {available} {what} for evaluation; expected at least one on "
            "each side."
        )
    return count


def digest_of(rows: Iterable[object]) -> str:
    """Return the SHA-256 of rows that JSON can write (anything else goes in as its ``repr``)."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()
