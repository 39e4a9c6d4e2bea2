"""The policy that a run trains: the model's weights or an adapter on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lmrl.algorithms.beside import POLICY, no_such_model
from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.engines.protocol import Engine, Request
from lmrl.errors import SettingsError
from lmrl.models.adapted import Adapter
from lmrl.models.beside import ModelsBeside
from lmrl.models.loading import LanguageModel
from lmrl.models.policy import PolicyModel
from lmrl.models.text_policy import Reference
from lmrl.plugins.specs import Needs
from lmrl.seeds import derive_seed
from lmrl.stages.rl.config import RLConfig
from lmrl.text.files import find_files
from lmrl.text.turns import record_ends

if TYPE_CHECKING:
    from lmrl.stages.rl.setup import Checked, Texts


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


def make_beside(
    checked: Checked,
    texts: Texts,
    optimizer: PolicyOptimizer,
    engine: Engine,
    policy: PolicyModel,
    reference: Reference | None,
) -> ModelsBeside | None:
    """Return the models that the optimizer names beside its policy; None if it names none.

    Raises ``SettingsError`` for an engine that cannot hold several models where further requests name one.
    """
    declared = optimizer.models()
    one = Request([0], texts.spec, seed=0)
    requests = optimizer.further_requests([one] * checked.config.train.group_size)
    asked = {request.model for request in requests} - {POLICY}
    if not (declared or asked or checked.needs.reference):
        return None
    card, trust = texts.start.card, checked.config.trust_remote_code
    beside = ModelsBeside(declared, policy, card, reference if checked.needs.reference else None, trust)
    for name in sorted(asked - set(beside.names)):
        raise no_such_model(name, beside.names)
    if asked and not engine.capabilities.several_models:
        raise SettingsError(
            f"optimizer {checked.spec.name!r} samples from {', '.join(sorted(asked))} too, and engine "
            f"{checked.config.engine.name!r} holds one model; use engine.name=transformers"
        )
    return beside


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
