"""The benchmark suites that come with lmrl, and the kinds of suites that they are of. Cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from lmrl import BenchmarkSpec, SuiteKindSpec, hookimpl

SUITES = {
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
"""Their files are `suites/<name>.toml`."""

KINDS = {
    "exact": ("lmrl_suites.kinds.exact:ExactKind", "training on enumerable problems, against their optimum"),
    "overoptimization": ("lmrl_suites.kinds.overoptimization:OveroptimizationKind", "RL against learned proxies"),
    "reward": ("lmrl_suites.kinds.reward:RewardKind", "training of reward models"),
    "rl": ("lmrl_suites.kinds.rl:RLKind", "runs of `lmrl rl`"),
    "throughput": ("lmrl_suites.kinds.throughput:ThroughputKind", "speed and memory"),
}


@hookimpl
def lmrl_benchmarks() -> Iterable[BenchmarkSpec]:
    """Offer the suites; their files are read when they are run."""
    folder = Path(__file__).parent / "suites"
    return [BenchmarkSpec(name, str(folder / f"{name}.toml"), summary) for name, summary in SUITES.items()]


@hookimpl
def lmrl_suite_kinds() -> Iterable[SuiteKindSpec]:
    """Offer the kinds; their modules are imported when a suite of that kind is run."""
    return [SuiteKindSpec(name, _builder(point), summary) for name, (point, summary) in KINDS.items()]


def _builder(point: str) -> Callable[[], Any]:
    module, _, name = point.partition(":")
    return lambda: getattr(import_module(module), name)()
