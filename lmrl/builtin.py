"""Records of the core itself, registered through the same hooks as a stranger's plugin.

Each hook imports what it offers when it is called; what is expensive (transformers, TensorBoard) waits for ``build``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmrl.plugins import hookimpl
from lmrl.plugins.specs import (
    CommandSpec,
    DatasetSpec,
    EngineSpec,
    EnvironmentSpec,
    PromptSamplerSpec,
    RewardSpec,
    TrackerSpec,
)


@hookimpl
def lmrl_rewards() -> Iterable[RewardSpec]:
    """Offer the rewards of ``lmrl.rewards``."""
    from lmrl.rewards import builtin_specs

    return builtin_specs()


@hookimpl
def lmrl_datasets() -> Iterable[DatasetSpec]:
    """Offer prompts from files and from the embedded story world."""
    from lmrl.data.builtin import builtin_datasets as from_files
    from lmrl.stories.prompts import builtin_datasets as from_stories

    return [*from_files(), *from_stories()]


@hookimpl
def lmrl_prompt_samplers() -> Iterable[PromptSamplerSpec]:
    """Offer the prompt samplers of the RL stage."""
    from lmrl.stages.rl.prompt_samplers import builtin_specs

    return builtin_specs()


@hookimpl
def lmrl_engines() -> Iterable[EngineSpec]:
    """Offer the default decode engine."""
    from lmrl.engines.settings import TransformersEngineSettings

    return [
        EngineSpec(
            name="transformers",
            build=_transformers_engine,
            settings=TransformersEngineSettings,
            summary="Decodes any transformers causal language model with a key-value cache.",
        )
    ]


@hookimpl
def lmrl_environments() -> Iterable[EnvironmentSpec]:
    """Offer the environment that ``import lmrl`` registers."""
    from lmrl import ENVIRONMENT_ID, ENVIRONMENT_POINT, VECTOR_ENVIRONMENT_POINT

    return [
        EnvironmentSpec(
            name=ENVIRONMENT_ID,
            entry_point=ENVIRONMENT_POINT,
            vector_entry_point=VECTOR_ENVIRONMENT_POINT,
            summary="Text generation: one action is one token.",
        )
    ]


@hookimpl
def lmrl_commands() -> Iterable[CommandSpec]:
    """Offer the subcommands."""
    from lmrl.cli import (
        bench,
        chat,
        compare,
        config,
        eval,
        export,
        new_plugin,
        plugins,
        prefer,
        pretrain,
        quickstart,
        reward,
        rl,
        sft,
    )

    return [
        quickstart.SPEC,
        pretrain.SPEC,
        sft.SPEC,
        prefer.SPEC,
        reward.SPEC,
        rl.SPEC,
        eval.SPEC,
        compare.SPEC,
        chat.SPEC,
        export.SPEC,
        bench.SPEC,
        plugins.SPEC,
        new_plugin.SPEC,
        config.SPEC,
    ]


@hookimpl
def lmrl_trackers() -> Iterable[TrackerSpec]:
    """Offer TensorBoard."""
    return [TrackerSpec(name="tensorboard", build=_tensorboard, summary="TensorBoard events in the run's folder.")]


def _tensorboard(run_folder: Path, first_update: int | None = None) -> Any:
    from lmrl.training.tracking import TensorBoardTracker

    return TensorBoardTracker(run_folder, first_update)


def _transformers_engine(settings: Any) -> Any:
    if settings.workers > 1:
        from lmrl.engines.local.workers import ParallelEngine

        return ParallelEngine(settings)
    from lmrl.engines.local.engine import TransformersEngine

    return TransformersEngine(settings)
