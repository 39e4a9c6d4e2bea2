"""Notes on reading data go to the log: losses as warnings, the rest as information."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO, WARNING, Logger

LOSSES = (": left out ", ": cut off ", " does not render ")


def is_loss_of_data(note: str) -> bool:
    """Return whether a note reports rows that were left out or cut off, or keys that no template renders."""
    return any(loss in note for loss in LOSSES)


def log_notes(logger: Logger, notes: Iterable[str]) -> None:
    """Write notes to a log, each once."""
    for note in dict.fromkeys(notes):
        logger.log(WARNING if is_loss_of_data(note) else INFO, note)
