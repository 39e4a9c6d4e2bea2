"""What an RL run is refused for before any sampling: settings that contradict each other, prompts without room."""

from __future__ import annotations

from typing import Any

from lmrl.data import PromptSet
from lmrl.errors import PromptError, SettingsError
from lmrl.models import LanguageModel
from lmrl.sampling.spec import SamplingSpec
from lmrl.specs import OptimizerSpec
from lmrl.stages.rl_config import RLConfig


def check_settings(config: RLConfig, optimizer: OptimizerSpec, settings: Any) -> None:
    """Refuse what cannot be trained, saying what is needed and how to give it."""
    needs = optimizer.needs
    if needs.experience != "rollouts":
        raise SettingsError(
            f"optimizer {optimizer.name!r} learns from {needs.experience}, but this stage samples rollouts from prompts"
        )
    if config.train.group_size < needs.minimum_group_size:
        raise SettingsError(
            f"optimizer {optimizer.name!r} compares at least {needs.minimum_group_size} responses to each prompt, but "
            f"train.group_size is {config.train.group_size}; set train.group_size={needs.minimum_group_size} or more"
        )
    sampling = config.sampling
    filters = [name for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0)) if getattr(sampling, name) != off]
    if filters:
        raise SettingsError(
            f"sampling.{filters[0]} is {getattr(sampling, filters[0])}: tokens would be drawn from a support that "
            "moves with the policy, and the ratio to it would be wrong. Train with the full distribution."
        )
    if sampling.temperature == 0:
        raise SettingsError("sampling.temperature is 0: greedy responses explore nothing; expected a number above 0")
    for name in ("epochs", "minibatches"):
        if getattr(settings, name) < 1:
            raise SettingsError(
                f"optimizer.{optimizer.name}.{name} is {getattr(settings, name)}; expected an integer >= 1"
            )
    if settings.minibatches > config.train.prompts_per_update:
        raise SettingsError(
            f"optimizer.{optimizer.name}.minibatches is {settings.minibatches}, more than the "
            f"{config.train.prompts_per_update} prompts per update"
        )


def encode_prompts(model: LanguageModel, prompts: PromptSet, spec: SamplingSpec) -> list[list[int]]:
    """Tokenise every prompt; raises ``PromptError`` for one without tokens or without room for a response."""
    rows = prompts.prompt_ids
    if rows is None:
        rows = [model.card.codec.encode(text) for text in prompts.prompts]
    for text, ids in zip(prompts.prompts, rows, strict=True):
        if not ids:
            raise PromptError(f"the prompt {text!r} has no tokens; expected at least one")
        if spec.context_length is not None and len(ids) >= spec.context_length:
            raise PromptError(
                f"a prompt has {len(ids)} tokens and leaves no room in the context of {spec.context_length} tokens; "
                f"shorten it: {text[:80]!r}..."
            )
    return rows
