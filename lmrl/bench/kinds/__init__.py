"""What a suite's runs are: a registry of kinds, each of which checks a suite, makes its runs and measures them.

To add one, write a module with a ``Kind`` and name it here. It is imported when a suite of that kind is.
"""

from __future__ import annotations

from importlib import import_module

from lmrl.bench.kinds.base import Kind, Metric, Outcome, Run
from lmrl.errors import SettingsError, unknown

__all__ = ["KINDS", "Kind", "Metric", "Outcome", "Run", "kind_named"]

GROUP = "group"
"""A suite that only names others; it has no runs of its own."""

KINDS = {
    "exact": "lmrl.bench.kinds.exact:ExactKind",
    "overoptimization": "lmrl.bench.kinds.overoptimization:OveroptimizationKind",
    "reward": "lmrl.bench.kinds.reward:RewardKind",
    "rl": "lmrl.bench.kinds.rl:RLKind",
    "throughput": "lmrl.bench.kinds.throughput:ThroughputKind",
}
"""The class of each kind, as "module:Class"."""


def kind_named(name: str) -> Kind:
    """Return a kind; raises ``SettingsError`` for an unknown one, with the nearest name."""
    if name not in KINDS:
        raise SettingsError(unknown("kind of suite", name, [*KINDS, GROUP]))
    module, _, attribute = KINDS[name].partition(":")
    kind: Kind = getattr(import_module(module), attribute)()
    return kind
