"""The policy that a run trains: the model's weights or an adapter on them."""

from __future__ import annotations

from pathlib import Path

import torch

from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.errors import SettingsError
from lmrl.models.adapted import Adapter
from lmrl.models.loading import LanguageModel
from lmrl.models.policy import PolicyModel
from lmrl.plugins.specs import Needs
from lmrl.seeds import derive_seed
from lmrl.stages.rl.config import RLConfig
from lmrl.text.files import find_files
from lmrl.text.turns import record_ends


def make_policy(
    config: RLConfig, optimizer: PolicyOptimizer, needs: Needs, start: LanguageModel, turns: bool = False
) -> PolicyModel:
    """Return the policy of a run as it starts, with the heads that come with the model.

    With an adapter it holds ``start``'s own model as the frozen backbone. ``turns``: the model answers in
    conversations, and the tokens that end a turn are saved with it.
    """
    if turns:
        record_ends(start.model, start.card.eos_ids)
    torch.manual_seed(derive_seed(config.run.seed, "torch"))
    adapter = Adapter(start.model, config.adapter) if config.adapter.method != "none" else None
    critic = config.train.separate_critic or needs.values == "separate"
    policy = PolicyModel(start.model, bool(needs.values), critic, optimizer, adapter)
    policy.load_value_head(Path(start.card.files or start.card.path))
    return policy


def check_adapter(config: RLConfig, optimizer: PolicyOptimizer) -> None:
    """Raise ``SettingsError`` for an adapter that cannot be trained, before any model is loaded."""
    settings = config.adapter
    if settings.method == "none":
        return
    if settings.dropout:
        raise SettingsError(
            f"adapter.dropout is {settings.dropout}; expected 0 in RL: a ratio between two dropout masks measures the "
            "masks. Leave it out."
        )
    if optimizer.defines("sampled_head"):
        raise SettingsError(
            f"adapter.method is {settings.method!r}, but optimizer {config.optimizer.name!r} writes another LM head, "
            'which an adapter cannot hold; set adapter.method="none", or choose another optimizer, such as dpo or kto'
        )
    if config.model:
        files = find_files(config.model)
        if files.adapter is not None:
            raise SettingsError(
                f"model is {config.model}, an adapter on {files.folder}, and adapter.method is "
                f"{settings.method!r}: a checkpoint would be an adapter on an adapter. Write a whole model first: "
                f"lmrl export {config.model} FOLDER --merge, then model=FOLDER"
            )
