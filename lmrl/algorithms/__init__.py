"""Imports for authors of algorithms: the optimizer's contract, its data, and pure functions.

``PolicyOptimizer`` is the contract, ``Rollout`` and ``Batch`` are what it sees, ``ops`` has advantages, surrogates,
baselines and aggregation, ``preference_losses`` the losses of pairs and labelled answers. Names are imported when they
are first used, because ``lmrl.algorithms.kl`` needs no torch.
"""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.algorithms import kl, ops, preference_losses
    from lmrl.algorithms.actor_critic import ActorCritic, ActorCriticSettings
    from lmrl.algorithms.beside import Mixture, NamedModel
    from lmrl.algorithms.experience import (
        DemonstrationBatch,
        Experience,
        LabelledBatch,
        PairBatch,
        Responses,
        TrajectoryBatch,
    )
    from lmrl.algorithms.kl import KLSettings
    from lmrl.algorithms.optimizer import (
        Evaluation,
        LogitsProcessor,
        Loss,
        LossAggregation,
        Minibatch,
        OptimizerSettings,
        OtherModel,
        Policy,
        PolicyOptimizer,
    )
    from lmrl.algorithms.parameters import TrainedParameters
    from lmrl.algorithms.prompts import PromptPool, PromptResults, PromptSampler
    from lmrl.algorithms.rollout import Advantages, Batch, Rollout, Samples, UndeclaredNeed
    from lmrl.algorithms.sequences import Sequences, lengths_to_mask

__all__ = [
    "ActorCritic",
    "ActorCriticSettings",
    "Advantages",
    "Batch",
    "DemonstrationBatch",
    "Evaluation",
    "Experience",
    "KLSettings",
    "LabelledBatch",
    "LogitsProcessor",
    "Loss",
    "LossAggregation",
    "Minibatch",
    "Mixture",
    "NamedModel",
    "OptimizerSettings",
    "OtherModel",
    "PairBatch",
    "Policy",
    "PolicyOptimizer",
    "PromptPool",
    "PromptResults",
    "PromptSampler",
    "Responses",
    "Rollout",
    "Samples",
    "Sequences",
    "TrainedParameters",
    "TrajectoryBatch",
    "UndeclaredNeed",
    "kl",
    "lengths_to_mask",
    "ops",
    "preference_losses",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lmrl.algorithms.actor_critic": ("ActorCritic", "ActorCriticSettings"),
        "lmrl.algorithms.beside": ("Mixture", "NamedModel"),
        "lmrl.algorithms.experience": (
            "DemonstrationBatch",
            "Experience",
            "LabelledBatch",
            "PairBatch",
            "Responses",
            "TrajectoryBatch",
        ),
        "lmrl.algorithms.kl": ("KLSettings",),
        "lmrl.algorithms.optimizer": (
            "Evaluation",
            "Loss",
            "LogitsProcessor",
            "LossAggregation",
            "Minibatch",
            "OptimizerSettings",
            "OtherModel",
            "Policy",
            "PolicyOptimizer",
        ),
        "lmrl.algorithms.parameters": ("TrainedParameters",),
        "lmrl.algorithms.prompts": ("PromptPool", "PromptResults", "PromptSampler"),
        "lmrl.algorithms.rollout": (
            "Advantages",
            "Batch",
            "Rollout",
            "Samples",
            "UndeclaredNeed",
        ),
        "lmrl.algorithms.sequences": ("Sequences", "lengths_to_mask"),
    },
)
