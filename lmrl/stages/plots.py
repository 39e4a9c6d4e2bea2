"""Curves of a run as a PNG file."""

from __future__ import annotations

from pathlib import Path

from lmrl.stages.run import read_metrics

PLOT_FILE = "curves.png"


def plot_run(folder: Path) -> Path:
    """Draw reward, KL and length over the updates from ``metrics.jsonl`` and return the file.

    Lines are training batches; points with bars are evaluations on held-out prompts with 95% intervals.
    """
    from matplotlib.figure import Figure  # the Figure class alone needs no display and leaves no global state
    from matplotlib.ticker import MaxNLocator

    records = read_metrics(folder)
    panels = [
        ("reward", "reward"),
        ("kl", "KL to the reference (nats per sequence)"),
        ("length", "length (tokens)"),
    ]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        training = [(r["update"], r[f"rollout/{name}"]) for r in records if f"rollout/{name}" in r]
        if training:
            axes.plot(*zip(*training, strict=True), color="#4477aa", linewidth=1.2, label="training batch")
        evaluated = [r for r in records if f"evaluation/{name}" in r]
        if evaluated:
            means = [r[f"evaluation/{name}"] for r in evaluated]
            below = [m - r.get(f"evaluation/{name}_low", m) for m, r in zip(means, evaluated, strict=True)]
            above = [r.get(f"evaluation/{name}_high", m) - m for m, r in zip(means, evaluated, strict=True)]
            axes.errorbar(
                [r["update"] for r in evaluated],
                means,
                yerr=[below, above],
                fmt="o",
                markersize=4,
                capsize=3,
                color="#cc6677",
                label="held-out prompts, 95%",
            )
        axes.set_xlabel("update")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False)
    path = folder / PLOT_FILE
    figure.savefig(path, dpi=120)
    return path
