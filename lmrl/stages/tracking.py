"""What records a run's numbers, texts and histograms while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """An experiment tracker; ``update`` numbers rollout batches from 1, and 0 is before training."""

    def scalars(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record numbers."""
        ...

    def texts(self, update: int, name: str, texts: Sequence[str]) -> None:
        """Record sample texts."""
        ...

    def histogram(self, update: int, name: str, values: Any) -> None:
        """Record a distribution, an array of numbers."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class TensorBoardTracker:
    """Writes TensorBoard events into ``<run folder>/tensorboard``."""

    def __init__(self, run_folder: Path, purge_update: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_folder / "tensorboard"), purge_step=purge_update)

    def scalars(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record numbers as scalars of the same names."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, update)

    def texts(self, update: int, name: str, texts: Sequence[str]) -> None:
        """Record sample texts, one Markdown paragraph each."""
        self._writer.add_text(name, "\n\n---\n\n".join(texts), update)

    def histogram(self, update: int, name: str, values: Any) -> None:
        """Record a histogram."""
        self._writer.add_histogram(name, values, update)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
