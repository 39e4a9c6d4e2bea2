"""The signatures of all hooks; `docs/hooks.md` explains each one with an example.

A plugin implements any of them with ``lmrl.hookimpl`` and may leave out arguments that it does not read. Arguments are
only ever appended, so an implementation keeps working.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

from lmrl.plugins.specs import (
    BenchmarkSpec,
    CommandSpec,
    DatasetSpec,
    EngineSpec,
    EnvironmentSpec,
    OptimizerSpec,
    PromptSamplerSpec,
    RewardSpec,
    SuiteKindSpec,
    TrackerSpec,
)

if TYPE_CHECKING:
    from lmrl.algorithms.rollout import Rollout

PROJECT = "lmrl"
"""The name that ties pluggy's markers and managers together, and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
"""Decorator that marks the signature of a hook."""
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorator that marks a plugin's function as the implementation of the hook of its name."""


@hookspec
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Offer policy optimizers."""
    return ()


@hookspec
def lmrl_rewards() -> Iterable[RewardSpec]:
    """Offer rewards."""
    return ()


@hookspec
def lmrl_engines() -> Iterable[EngineSpec]:
    """Offer decode engines."""
    return ()


@hookspec
def lmrl_datasets() -> Iterable[DatasetSpec]:
    """Offer data sets of prompts."""
    return ()


@hookspec
def lmrl_prompt_samplers() -> Iterable[PromptSamplerSpec]:
    """Offer choices of the prompts of each update."""
    return ()


@hookspec
def lmrl_environments() -> Iterable[EnvironmentSpec]:
    """Offer Gymnasium environments."""
    return ()


@hookspec
def lmrl_benchmarks() -> Iterable[BenchmarkSpec]:
    """Offer benchmark suites."""
    return ()


@hookspec
def lmrl_suite_kinds() -> Iterable[SuiteKindSpec]:
    """Offer kinds of benchmark suites: what a run of a suite is."""
    return ()


@hookspec
def lmrl_commands() -> Iterable[CommandSpec]:
    """Offer subcommands of `lmrl`."""
    return ()


@hookspec
def lmrl_trackers() -> Iterable[TrackerSpec]:
    """Offer experiment trackers."""
    return ()


@hookspec
def lmrl_run_start(run: Any) -> None:
    """Observe a run that is about to begin: its folder exists, nothing has been sampled."""


@hookspec
def lmrl_rollout(run: Any, rollout: Rollout) -> None:
    """Observe a rollout that has been sampled, scored and shaped, before the optimizer sees it."""


@hookspec
def lmrl_step_end(run: Any, step: int, metrics: dict[str, float]) -> None:
    """Observe the end of an update with the metrics that were logged."""


@hookspec
def lmrl_checkpoint_saved(run: Any, path: Any) -> None:
    """Observe a checkpoint that is complete on disk."""


@hookspec
def lmrl_run_end(run: Any, error: BaseException | None) -> None:
    """Observe the end of a run; ``error`` is what ended it early, or None."""
