"""Record of a comparison: one JSON-able record per side, complete by itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lmrl.bench.circumstances import processor_name
from lmrl_suites.throughput.peaks import Peaks
from lmrl_suites.throughput.setting import Cell, ThroughputSettings
from lmrl_suites.throughput.shapes import SHAPES
from lmrl_suites.throughput.timing import Comparison, Side, spread

SUITE = "throughput"
PACKAGES = ("lmrl", "torch", "transformers", "trl", "gymnasium", "accelerate", "numpy")
SETTINGS = ("rounds", "prompt_tokens", "new_tokens", "microbatch_rows", "trl_checkpointing")


def records_of(comparison: Comparison, about: dict[str, Any], peaks: Peaks | None) -> Iterator[dict[str, Any]]:
    """Yield one record per side, and one for each that was skipped."""
    for side in comparison.sides:
        yield {
            **about,
            "variant": comparison.variant,
            "side": side.name,
            "baseline": comparison.baseline,
            "unit": comparison.unit,
            "rate": spread(side.rates),
            "ratio": spread(comparison.ratios(side)),
            **_utilisation(side, peaks),
            "stages": side.stages,
            **side.notes,
            "counts": side.counts,
            "seconds": side.seconds,
            "flops": side.flops,
            "skipped": {},
        }
    for name, reason in comparison.skipped.items():
        yield {**about, "variant": comparison.variant, "side": name, "skipped": {name: reason}}


def _utilisation(side: Side, peaks: Peaks | None) -> dict[str, float]:
    """Return the median rate of floating-point operations, and its share of the measured peak: the utilisation."""
    if not side.flops or len(side.flops) != len(side.seconds):
        return {}
    rate = statistics.median(flops / seconds for flops, seconds in zip(side.flops, side.seconds, strict=True))
    return {"flops_per_second": rate} | ({"utilisation": rate / peaks.flops} if peaks is not None else {})


def about_cell(cell: Cell, settings: ThroughputSettings, peaks: Peaks | None, around: dict[str, Any]) -> dict[str, Any]:
    """Return everything but the measurement: what was measured, on what, and under which circumstances."""
    shape = SHAPES[cell.size]
    on_gpu = settings.device == "cuda"
    return {
        "suite": SUITE,
        "workload": cell.workload,
        "model": cell.size,
        "parameters": shape.parameters,
        "shape": asdict(shape),
        "lengths": cell.lengths,
        "group_size": cell.group_size,
        "rows": cell.rows,
        "algorithm": cell.algorithm,
        **{name: getattr(settings, name) for name in SETTINGS},
        "precision": "bfloat16" if on_gpu else "float32",
        "peak_flops": peaks.flops if peaks else None,
        "bandwidth": peaks.bandwidth if peaks else None,
        **around,
    }


def circumstances(settings: ThroughputSettings) -> dict[str, Any]:
    """Return what a number means nothing without: machine, threads, versions, commit."""
    return {
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """Return the checkout's commit, marked if the library's tracked files differ from it."""
    folder = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", "../plugins")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+changes" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
