"""Encoding every row of some data: what cannot be used is left out, counted by reason, and its first case is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lmrl.errors import DataError

Source = TypeVar("Source")
Encoded = TypeVar("Encoded")


class LeftOut(Exception):
    """Raised for a row that cannot be used; ``reason`` is what rows are counted by, ``detail`` is of this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason, self.detail = reason, detail or reason


@dataclass
class EncodedRows(Generic[Source, Encoded]):
    """Encoded rows with their sources; ``skipped`` counts the others by reason, ``first`` has (number, detail)."""

    rows: list[Encoded] = field(default_factory=list)
    kept: list[Source] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, tuple[int, str]] = field(default_factory=dict)

    def detail(self, reason: str) -> str:
        """Return what was wrong with the first row that was left out for this reason, or an empty string."""
        return self.first[reason][1] if reason in self.first else ""

    def reasons(self) -> str:
        """Return the counts in words."""
        return "; ".join(f"{count} {reason}" for reason, count in self.skipped.items())


def encode_all(
    sources: Iterable[Source], encode: Callable[[Source], Encoded], unrendered: str
) -> EncodedRows[Source, Encoded]:
    """Encode every row; a ``DataError`` is counted as ``unrendered``, a ``LeftOut`` by its own reason."""
    found: EncodedRows[Source, Encoded] = EncodedRows()
    for number, source in enumerate(sources, start=1):
        try:
            row = encode(source)
        except (DataError, LeftOut) as error:
            reason, detail = (error.reason, error.detail) if isinstance(error, LeftOut) else (unrendered, str(error))
            found.skipped[reason] = found.skipped.get(reason, 0) + 1
            found.first.setdefault(reason, (number, detail))
            continue
        found.rows.append(row)
        found.kept.append(source)
    return found
