"""Frozen records that plugins yield from their hooks; users pick them by ``name`` in a configuration.

Importing this module is cheap: no torch, no transformers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from lmrl.errors import RenamedError

Concurrency = Literal["none", "thread", "process"]
"""Places of a reward's calls while responses are still sampled: none, threads, or processes."""
Experience = Literal["rollouts", "preferences", "labelled", "trajectories", "demonstrations"]
"""Kinds of experience that an optimizer learns from."""

MOVED_NEEDS = {
    "separate_critic": 'declare Needs(values="separate")',
    "greedy_scores": "let the optimizer write further_requests(group) and read rollout.further_scores",
    "action_values": "let the optimizer write heads(width, actions) and read evaluation.head(name)",
    "mask_policy": "let the optimizer write processor(model, spec, autocast)",
}
"""Fields of ``Needs`` in version 0.1, each with what to write in their place."""


@dataclass(frozen=True)
class Needs:
    """Needs of an optimizer; the trainer supplies them, or refuses the run before any sampling."""

    values: bool | Literal["separate"] = False
    """A value head, ``rollout.values``, ``rollout.bootstrap_values`` and ``evaluation.values``. "separate": the value
    function has a trunk of its own, so that its loss does not reach the policy's parameters."""
    reference: bool = False
    """The trainer supplies ``rollout.reference_logprobs``, also when the KL coefficient is 0."""
    minimum_group_size: int = 1
    """Samples per prompt at the least: 2 for methods that compare the answers to one prompt."""
    whole_groups: bool = False
    """The rows of one prompt reach ``loss`` together, never cut in two for memory: it couples them."""
    experience: Experience = "rollouts"
    """Experience that it learns from."""
    importance: bool = True
    """The loss of the policy is proportional to ``batch.advantages``, so that the trainer corrects samples of another
    distribution by weighting these. False for a method that uses advantages otherwise, as an indicator for instance."""

    scores: bool = True
    """False for a method that reads no score, such as distillation: a run of it needs no reward."""

    def __new__(cls, *_: Any, **options: Any) -> Self:
        """Give fields of version 0.1 an error that names their place in this version."""
        for name in options.keys() & MOVED_NEEDS.keys():
            raise RenamedError(
                f"Needs({name}=...) is gone; {MOVED_NEEDS[name]}. docs/migration.md lists what changed in version 0.2"
            )
        return super().__new__(cls)


@dataclass(frozen=True)
class OptimizerSpec:
    """A policy optimizer: ``build(settings)`` returns a ``lmrl.PolicyOptimizer``."""

    name: str
    """Name in ``optimizer.name``, and of the settings' section ``[optimizer.<name>]``."""
    build: Callable[[Any], Any]
    """Function of the settings that returns a ``lmrl.PolicyOptimizer``."""
    settings: type
    """Dataclass of the settings, a subclass of ``lmrl.OptimizerSettings``."""
    needs: Needs = field(default_factory=Needs)
    """Inputs that the optimizer requires."""
    summary: str = ""
    """One line of description."""
    reads_rewards: bool = True
    """Credit assignment reads ``rollout.rewards``, which hold the KL penalty. False for a method that by design
    compares ``rollout.scores`` alone (the best response of a group): a KL penalty in the reward does not affect it."""


@dataclass(frozen=True)
class RewardSpec:
    """A reward: ``build(settings)`` returns a callable ``(prompts, responses, **columns) -> scores``."""

    name: str
    """Name in ``reward.name`` and ``reward_weights``, and of the section ``[reward.<name>]``."""
    build: Callable[[Any], Any]
    """Function of the settings that returns a callable ``(prompts, responses, **columns) -> scores``."""
    settings: type
    """Dataclass of the settings."""
    summary: str = ""
    """One line of description."""
    concurrency: Concurrency = "none"
    """Place of calls with some rows of a batch while others are still sampled: in threads, in processes
    (it must pickle), or not at all. Only for rewards whose scores each depend on their own row alone."""


@dataclass(frozen=True)
class EngineSpec:
    """An inference engine: ``build(settings)`` returns a ``lmrl.engines.Engine``."""

    name: str
    """Name in ``engine.name``, and of the section ``[engine.<name>]``."""
    build: Callable[[Any], Any]
    """Function of the settings that returns a ``lmrl.engines.Engine``."""
    settings: type
    """Dataclass of the settings."""
    summary: str = ""
    """One line of description."""
    draws_from_policy: bool = True
    """The engine samples from the policy. False for an engine that chooses among samples: it is not allowed in
    training."""

    def __new__(cls, *_: Any, **options: Any) -> Self:
        """Give options of version 0.1 an error that says where they are now."""
        for name in ("streams", "exact"):
            if name in options:
                raise RenamedError(
                    f"EngineSpec({name}=...) is a capability of the engine now: capabilities = Capabilities("
                    f"{'streaming' if name == 'streams' else name}=True); docs/migration.md lists what changed in "
                    "version 0.2"
                )
        return super().__new__(cls)


@dataclass(frozen=True)
class DatasetSpec:
    """A prompt source: ``build(settings)`` returns a list of rows, each a dict with a ``prompt`` and other columns."""

    name: str
    """Name in ``prompts.name``, and of the section ``[prompts.<name>]``."""
    build: Callable[[Any], Any]
    """Function of the settings that returns rows: mappings with a ``prompt`` and columns for the reward."""
    settings: type
    """Dataclass of the settings."""
    summary: str = ""
    """One line of description."""


@dataclass(frozen=True)
class PromptSamplerSpec:
    """A choice of prompts: ``build(settings, pool)`` returns a ``lmrl.algorithms.PromptSampler``."""

    name: str
    """Name in ``prompt_sampler.name``, and of the section ``[prompt_sampler.<name>]``."""
    build: Callable[[Any, Any], Any]
    """Function of the settings and the pool of prompts that returns a ``lmrl.algorithms.PromptSampler``."""
    settings: type
    """Dataclass of the settings."""
    summary: str = ""
    """One line of description."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """A Gymnasium environment to register: an id and a ``module:Class`` entry point."""

    name: str
    """Gymnasium id, such as ``Dialogue-v0``."""
    entry_point: str
    """Class of the environment, ``module:Class``."""
    vector_entry_point: str | None = None
    """Class of a native vector environment, ``module:Class``, if there is one."""
    summary: str = ""
    """One line of description."""


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark suite: ``path`` of its TOML file."""

    name: str
    """Name in ``lmrl bench run NAME``."""
    path: str
    """Path of the suite's TOML file."""
    summary: str = ""
    """One line of description."""


@dataclass(frozen=True)
class SuiteKindSpec:
    """A kind of benchmark suite: ``build()`` returns a ``lmrl.bench.suite_kind.SuiteKind``."""

    name: str
    """Name in a suite's file, ``kind = "<name>"``."""
    build: Callable[[], Any]
    """Function that returns a ``lmrl.bench.suite_kind.SuiteKind``."""
    summary: str = ""
    """One line of description."""


@dataclass(frozen=True)
class CommandSpec:
    """A subcommand of ``lmrl``: ``add_arguments(parser)`` and ``run(arguments) -> exit code``.

    ``run`` may read ``arguments.plugin_manager``, the manager of this process.
    """

    name: str
    """Name of the command, ``lmrl <name>``."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Function that declares the command's arguments on its parser."""
    run: Callable[[argparse.Namespace], int]
    """Function of the parsed arguments that returns the exit code."""
    summary: str = ""
    """One line for ``lmrl --help``."""
    example: str = ""
    """Command line that ends the command's help."""


@dataclass(frozen=True)
class TrackerSpec:
    """A tracker: ``build(settings, run_folder, first_update)`` returns an ``lmrl.training.tracking.Tracker``.

    ``first_update`` is None for a new run, and the first update that a resumed run writes again. A tracker without
    settings is built by ``build(run_folder, first_update)``.
    """

    name: str
    """Name in ``trackers``, and of the section ``[tracker.<name>]``."""
    build: Callable[..., Any]
    """Function that returns a ``lmrl.training.tracking.Tracker``."""
    summary: str = ""
    """One line of description."""
    settings: type | None = None
    """Dataclass of the section ``[tracker.<name>]``."""
