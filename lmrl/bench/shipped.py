"""The suites that come with lmrl, as the records that the core's plugin registers. Cheap to import."""

from __future__ import annotations

from pathlib import Path

from lmrl.plugins.specs import BenchmarkSpec

SHIPPED = {
    "exact": "Gap to the closed-form optimum where every answer can be enumerated",
    "stories": "Sentiment, object consistency and length in the embedded story world",
    "verifiable": "Addition, word sorting and copying with exact graders",
    "synthetic": "Increasing numbers, dates, and shortest paths from random walks",
    "overoptimization": "Learned proxies of a known gold reward: what optimising them costs, and what ensembles change",
    "reward-models": "Accuracy and calibration by the share of the labels: whole rankings, all pairs, one pair",
    "reasoning": "GSM8K and BIG-bench's word sorting, for a model and data of yours",
    "throughput": "Sampling, updates and whole batches beside generate, a padded update and TRL",
    "smoke": "All suites but reasoning at toy size, in a few minutes",
}
"""Their files lie in `suites/`, by name."""


def builtin_benchmarks() -> list[BenchmarkSpec]:
    """Return the suites that ship with the core; their files are read when they are run."""
    folder = Path(__file__).parent / "suites"
    return [BenchmarkSpec(name, str(folder / f"{name}.toml"), summary) for name, summary in SHIPPED.items()]
