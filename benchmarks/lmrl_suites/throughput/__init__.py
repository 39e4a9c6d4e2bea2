"""The suite `throughput`: sampling, updating, whole batches, learning, memory and the environment, beside the others.

``measure`` yields one record per workload, model, lengths, group size and side; ``rows_of`` and ``markdown`` show them.
Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmrl_suites.throughput.setting import Cell, ThroughputSettings, cells
from lmrl_suites.throughput.table import COLUMNS, markdown, rows_of

__all__ = ["COLUMNS", "ThroughputSettings", "markdown", "measure", "rows_of"]


def measure(settings: ThroughputSettings, progress: bool = True) -> Iterator[dict[str, Any]]:
    """Measure what the settings ask for and yield a JSON-able record per side, as soon as its comparison is over.

    The sides of a comparison run in turns in this process, except where memory is measured. Where TRL is not installed,
    its sides are records with a reason under ``skipped``. Sets torch's number of threads if the settings do.
    """
    import tempfile
    from pathlib import Path

    import torch
    from tqdm import tqdm

    from lmrl_suites.throughput.peaks import measure_peaks
    from lmrl_suites.throughput.record import about_cell, circumstances
    from lmrl_suites.throughput.stage import Stage

    if settings.threads:
        torch.set_num_threads(settings.threads)
    dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
    peaks = measure_peaks(settings.device, dtype, settings.smoke)
    around = circumstances(settings)
    planned = list(cells(settings))
    with (
        tempfile.TemporaryDirectory(prefix="lmrl-throughput-") as folder,
        tqdm(planned, desc="throughput", unit="comparison", disable=not progress) as bar,
    ):
        stage: Stage | None = None
        for cell in bar:
            bar.set_postfix_str(cell.name)
            if stage is None or stage.size != cell.size:
                stage = Stage.write(settings, cell.size, Path(folder), peaks)
            about = about_cell(cell, settings, peaks, around)
            yield from _measure_cell(stage, cell, about)


def _measure_cell(stage: Any, cell: Cell, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from lmrl_suites.throughput import environment, episodes, learning, memory, sampling, update
    from lmrl_suites.throughput.record import records_of

    if cell.workload in ("memory", "learning"):
        of_sides = memory.measure(stage, cell) if cell.workload == "memory" else learning.measure(stage, cell)
        for record in of_sides:
            yield {**about, **record}
    elif cell.workload == "environment":
        for comparison in environment.measure(stage, cell):
            yield from records_of(comparison, about, stage.peaks)
    else:
        module = {"sampling": sampling, "queue": sampling, "update": update, "episodes": episodes}[cell.workload]
        yield from records_of(module.measure(stage, cell), about, stage.peaks)
