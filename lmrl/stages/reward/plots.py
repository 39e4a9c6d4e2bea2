"""Plots of a reward model's held-out rankings as one PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmrl.stages.reward.measures import Bin, HeldOut, RewardReport

PLOT_FILE = "reward.png"
BLUE, RED = "#4477aa", "#cc6677"


def plot_report(folder: Path, report: RewardReport, held_out: HeldOut) -> Path:
    """Draw the reliability curve, accuracy by margin, and score against length; return the file."""
    from matplotlib.figure import Figure  # the Figure class alone needs no display and leaves no global state

    gold = bool(report.by_gold_margin)
    figure = Figure(figsize=(4 * (3 + gold), 3.6), layout="constrained")
    axes = figure.subplots(1, 3 + gold)
    axes[0].plot([0.5, 1], [0.5, 1], color="#999999", linewidth=1, linestyle="--")
    _draw_bins(axes[0], report.calibration, report.pairs)
    axes[0].set(xlabel="confidence, sigmoid of the margin", ylabel="accuracy")
    axes[0].set_title(f"calibration error {report.calibration_error:.3f}", fontsize=10)
    _draw_bins(axes[1], report.by_margin, report.pairs)
    axes[1].set(xlabel="margin of the scores", ylabel="accuracy")
    if gold:
        _draw_bins(axes[2], report.by_gold_margin, report.pairs)
        axes[2].set(xlabel="margin of the data's own scores", ylabel="accuracy")
    for place in axes[1 : 2 + gold]:
        place.axhline(report.constant, color="#999999", linewidth=1, linestyle="--")
    lengths = np.concatenate([item.answer_lengths for item in held_out.items])
    axes[-1].scatter(lengths, np.concatenate(held_out.scores), s=6, alpha=0.4, color=BLUE, edgecolors="none")
    axes[-1].set(xlabel="length of the answer (tokens)", ylabel="score")
    axes[-1].set_title(f"Spearman {report.score_length_spearman:+.2f}", fontsize=10)
    for place in axes:
        place.grid(alpha=0.3)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    path = folder / PLOT_FILE
    figure.savefig(path, dpi=120)
    return path


def _draw_bins(axes: Any, bins: Sequence[Bin], pairs: int) -> None:
    means, accuracies = [part.mean for part in bins], [part.accuracy for part in bins]
    axes.plot(means, accuracies, color=BLUE, linewidth=1.2)
    axes.scatter(means, accuracies, s=[10 + 150 * part.pairs / max(pairs, 1) for part in bins], color=RED, zorder=3)
    axes.set_ylim(-0.02, 1.02)
