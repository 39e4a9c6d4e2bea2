"""lmrl: reinforcement learning for language models.

Importing it registers the Gymnasium environment ``TextGen-v0`` and loads neither torch nor transformers; every other
name is imported when it is first used.
"""

from typing import TYPE_CHECKING

import gymnasium

from lmrl.lazy import lazy_names
from lmrl.moved import explain_moved_modules

if TYPE_CHECKING:
    from lmrl.algorithms import ops
    from lmrl.algorithms.optimizer import Evaluation, Loss, OptimizerSettings, Policy, PolicyOptimizer
    from lmrl.algorithms.rollout import Advantages, Batch, Rollout, Samples
    from lmrl.engines import FinishReason, SamplingSpec
    from lmrl.errors import EngineError, LmrlError, ModelError, PluginError, SettingsError
    from lmrl.models import LanguageModel, load
    from lmrl.plugins import PLUGIN_API, PluginManager, hookimpl
    from lmrl.plugins.specs import (
        BenchmarkSpec,
        CommandSpec,
        DatasetSpec,
        EngineSpec,
        EnvironmentSpec,
        Needs,
        OptimizerSpec,
        PromptSamplerSpec,
        RewardSpec,
        SuiteKindSpec,
        TrackerSpec,
    )
    from lmrl.stages.rl.config import RLConfig
    from lmrl.stages.rl.stage import RLResult, rl
    from lmrl.stages.rl.trainer import RLTrainer

__version__ = "0.2.0"

ENVIRONMENT_ID = "TextGen-v0"
ENVIRONMENT_POINT = "lmrl.envs.text_generation:TextGenEnv"
VECTOR_ENVIRONMENT_POINT = "lmrl.envs.vector:TextGenVectorEnv"

_MODULES: dict[str, tuple[str, ...]] = {
    "lmrl.algorithms.ops": ("ops",),
    "lmrl.errors": ("EngineError", "LmrlError", "ModelError", "PluginError", "SettingsError"),
    "lmrl.models": ("LanguageModel", "load"),
    "lmrl.algorithms.optimizer": ("Evaluation", "Loss", "OptimizerSettings", "Policy", "PolicyOptimizer"),
    "lmrl.plugins": ("PLUGIN_API", "PluginManager", "hookimpl"),
    "lmrl.algorithms.rollout": ("Advantages", "Batch", "Rollout", "Samples"),
    "lmrl.engines": ("FinishReason", "SamplingSpec"),
    "lmrl.plugins.specs": (
        "BenchmarkSpec",
        "CommandSpec",
        "DatasetSpec",
        "EngineSpec",
        "EnvironmentSpec",
        "Needs",
        "OptimizerSpec",
        "PromptSamplerSpec",
        "RewardSpec",
        "SuiteKindSpec",
        "TrackerSpec",
    ),
    "lmrl.stages.rl.stage": ("RLResult", "rl"),
    "lmrl.stages.rl.config": ("RLConfig",),
    "lmrl.stages.rl.trainer": ("RLTrainer",),
}

__all__ = [
    "PLUGIN_API",
    "Advantages",
    "Batch",
    "BenchmarkSpec",
    "CommandSpec",
    "DatasetSpec",
    "EngineError",
    "EngineSpec",
    "EnvironmentSpec",
    "Evaluation",
    "FinishReason",
    "LanguageModel",
    "LmrlError",
    "Loss",
    "ModelError",
    "Needs",
    "OptimizerSettings",
    "OptimizerSpec",
    "PluginError",
    "PluginManager",
    "Policy",
    "PolicyOptimizer",
    "PromptSamplerSpec",
    "RLConfig",
    "RLResult",
    "RLTrainer",
    "RewardSpec",
    "Rollout",
    "Samples",
    "SamplingSpec",
    "SettingsError",
    "SuiteKindSpec",
    "TrackerSpec",
    "__version__",
    "hookimpl",
    "load",
    "ops",
    "rl",
]


__getattr__, __dir__ = lazy_names(__name__, _MODULES)


def _register_environment() -> None:
    # Gymnasium warns when an id is registered twice, as a reload of this module would.
    if ENVIRONMENT_ID not in gymnasium.registry:
        gymnasium.register(
            ENVIRONMENT_ID,
            entry_point=ENVIRONMENT_POINT,
            vector_entry_point=VECTOR_ENVIRONMENT_POINT,
            order_enforce=False,  # the environment itself raises ResetNeeded, with its own advice
        )


_register_environment()
explain_moved_modules()
