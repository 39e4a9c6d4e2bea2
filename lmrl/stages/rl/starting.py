"""The policy that a run trains: the model's weights or an adapter on them, fresh or from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.errors import SettingsError
from lmrl.models.adapted import Adapter
from lmrl.models.loading import LanguageModel, load
from lmrl.models.policy import PolicyModel
from lmrl.models.saving import restore_training_weights
from lmrl.plugins.specs import Needs
from lmrl.seeds import derive_seed
from lmrl.stages.rl.config import RLConfig
from lmrl.text.files import find_files
from lmrl.text.turns import record_ends


def make_policy(
    config: RLConfig,
    optimizer: PolicyOptimizer,
    needs: Needs,
    start: LanguageModel,
    checkpoint: str | None,
    turns: bool = False,
) -> PolicyModel:
    """Return the policy of a run, as it starts or as ``checkpoint`` has it.

    With an adapter it holds ``start``'s own model as the frozen backbone. ``turns``: the model answers in
    conversations, and the tokens that end a turn are saved with it.
    """
    own = Path(checkpoint or start.card.files or start.card.path)
    adapts = config.adapter.method != "none"
    if checkpoint and not adapts:
        model, trust = start.model, config.trust_remote_code
        found = load(checkpoint, device=model.device, dtype=torch.float32, trust_remote_code=trust)
        restore_training_weights(found.model, own)
        start = replace(start, model=found.model)
    if turns:
        record_ends(start.model, start.card.eos_ids)
    torch.manual_seed(derive_seed(config.run.seed, "torch"))
    adapter = Adapter(start.model, config.adapter) if adapts else None
    critic = config.train.separate_critic or needs.values == "separate"
    policy = PolicyModel(start.model, bool(needs.values), critic, optimizer, adapter)
    if adapter is not None and checkpoint:
        adapter.load(own)
    policy.load_value_head(own)
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


def refuse_second_adapter(config: RLConfig) -> None:
    """Raise ``SettingsError`` for an adapter on an adapter: a checkpoint of it would have no base model."""
    if config.adapter.method == "none" or not config.model:
        return
    files = find_files(config.model)
    if files.adapter is not None:
        raise SettingsError(
            f"model is {config.model}, an adapter on {files.folder}, and adapter.method is {config.adapter.method!r}: "
            "a checkpoint would be an adapter on an adapter. Write a whole model first: "
            f"lmrl export {config.model} FOLDER --merge, then model=FOLDER"
        )
