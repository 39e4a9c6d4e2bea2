"""What is kept of a comparison: JSON lines, and a table for the terminal."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from lmrl.cli.tables import make_table
from workloads.setting import Setting
from workloads.timing import Comparison, Side, spread

PACKAGES = ("lmrl", "torch", "transformers", "gymnasium", "accelerate", "numpy")


def circumstances(setting: Setting) -> dict[str, Any]:
    """Return what a number means nothing without."""
    return {
        "model": setting.name,
        "parameters": setting.parameters,
        "rows": setting.rows,
        "new_tokens": setting.new_tokens,
        "stop_ids": len(setting.stop_ids),
        "device": str(setting.language_model.model.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str:
    """Return the checkout's commit, marked if tracked files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../../lmrl", "../../plugins")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+changes" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def lines(comparison: Comparison, around: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one record per side, each complete by itself."""
    for side in comparison.sides:
        ratios = comparison.ratios(side)
        yield {
            "workload": comparison.workload,
            "side": side.name,
            "baseline": comparison.baseline,
            "unit": comparison.unit,
            "rate": spread(side.rates),
            "ratio": spread(ratios),
            "counts": side.counts,
            "seconds": side.seconds,
            "stages": side.stages,
            **around,
        }


def append(file: Path, comparison: Comparison, around: dict[str, Any]) -> None:
    """Add a comparison's records to a JSON-lines file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        for line in lines(comparison, around):
            out.write(json.dumps(line) + "\n")


def table(comparisons: list[Comparison]) -> Table:
    """Return the medians with their least and greatest."""
    result = make_table(["workload", "side", "per second (least to greatest)", "times the baseline"])
    for comparison in comparisons:
        for number, side in enumerate(comparison.sides):
            rate, ratio = spread(side.rates), spread(comparison.ratios(side))
            assert rate is not None
            result.add_row(
                comparison.workload if number == 0 else "",
                side.name,
                f"{rate['median']:,.0f} {comparison.unit} ({rate['min']:,.0f} to {rate['max']:,.0f})",
                f"{ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g})" if ratio else "",
            )
            if side.stages:
                result.add_row("", "  of which", shares(side), "")
    return result


def shares(side: Side) -> str:
    """Return which share of the time each stage took."""
    parts = []
    for stage, seconds in side.stages.items():
        share = statistics.median(one / all_of_it for one, all_of_it in zip(seconds, side.seconds, strict=True))
        parts.append(f"{stage} {share:.0%}")
    return ", ".join(parts)
