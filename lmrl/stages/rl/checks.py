"""Checks before sampling: conflicting settings and prompts that leave no room in the context."""

from __future__ import annotations

import logging
from typing import Any

from lmrl.data import PromptSet
from lmrl.engines.protocol import SamplingSpec
from lmrl.errors import PromptError, SettingsError
from lmrl.models import LanguageModel
from lmrl.plugins.specs import Needs, OptimizerSpec
from lmrl.stages.rl.config import RLConfig
from lmrl.stories.recognise import note_story_reward, refuse_story_defaults
from lmrl.text.card import load_card
from lmrl.text.encoding import text_ids
from lmrl.text.turns import holds_turns

logger = logging.getLogger(__name__)

LEARNS_FROM = {
    "preferences": "pairs or rankings of answers",
    "labelled": "answers that are labelled good or bad",
    "trajectories": "logged answers with their rewards",
    "demonstrations": "answers or texts to imitate",
}
EXAMPLES = {
    "preferences": "the rankings.jsonl that `lmrl prefer` writes",
    "labelled": "a file with the columns prompt, completion and label (true or false)",
    "trajectories": "a file with the columns prompt, completion and reward",
    "demonstrations": "a file with the columns prompt and completion, or a column text",
}


def check_settings(config: RLConfig, optimizer: OptimizerSpec, settings: Any, with_data: bool = False) -> None:
    """Refuse what cannot be trained, saying what is needed and how to give it.

    ``with_data``: data to learn from come from the caller instead of the configuration.
    """
    needs = optimizer.needs
    if needs.experience != "rollouts":
        if not (config.data.path or with_data):
            raise SettingsError(
                f"optimizer {optimizer.name!r} learns from {LEARNS_FROM[needs.experience]}, not from prompts; name "
                f"them with data.path=..., such as {EXAMPLES[needs.experience]}"
            )
    elif config.data.path or with_data:
        raise SettingsError(
            f"optimizer {optimizer.name!r} learns from what it samples, but data.path is {config.data.path!r}; leave "
            "data out and give prompts, or choose an optimizer that learns from such data"
        )
    elif config.train.group_size < needs.minimum_group_size:
        raise SettingsError(
            f"optimizer {optimizer.name!r} compares at least {needs.minimum_group_size} responses to each prompt, but "
            f"train.group_size is {config.train.group_size}; set train.group_size={needs.minimum_group_size} or more"
        )
    elif config.kl.placement == "loss" and optimizer.reads_rewards and optimizer.build(settings).defines("pairs"):
        raise SettingsError(
            f"kl.placement is 'loss', but optimizer {optimizer.name!r} learns from pairs, whose loss has no such "
            "penalty; set kl.placement=reward"
        )
    if config.replay.share and needs.experience == "rollouts":
        _check_replay(config, optimizer, settings)
    if config.train.separate_critic and optimizer.build(settings).defines("sampled_head"):
        raise SettingsError(
            f"train.separate_critic is true, but optimizer {optimizer.name!r} makes its policy of heads and the "
            "language model's head, which must share one trunk; set train.separate_critic=false"
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


def lacks_reward(config: RLConfig) -> bool:
    """Return whether the configuration names no reward."""
    return config.reward.is_default and not config.reward_weights


def _check_replay(config: RLConfig, optimizer: OptimizerSpec, settings: Any) -> None:
    """Refuse to replay for what importance weights on advantages do not correct."""
    built, kl = optimizer.build(settings), config.kl
    reasons = {
        "learns from pairs, which have no advantages to weight": built.defines("pairs"),
        "declares Needs(importance=False), so weights would not correct its loss": not optimizer.needs.importance,
        "makes further requests, whose scores would be of an older policy": built.defines("further_requests"),
        "restricts the tokens that are drawn, by sets that change between updates": built.defines("processor"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise SettingsError(
                f"replay.share is {config.replay.share}, but optimizer {optimizer.name!r} {reason}; set "
                "replay.share=0, or choose an optimizer such as reinforce, grpo or ppo"
            )
    if kl.beta > 0 and kl.placement == "loss":
        raise SettingsError(
            f"replay.share is {config.replay.share} and kl.placement is loss, where no importance weight corrects the "
            "penalty; set kl.placement=reward, or kl.beta=0"
        )


def refuse_defaults(config: RLConfig, optimizer: OptimizerSpec, prompts_given: bool, reward_given: bool) -> None:
    """Raise ``SettingsError`` if a model that is not of the stories would get their prompts or reward by default.

    ``prompts_given``, ``reward_given``: the caller brings them instead of the configuration.
    """
    samples = optimizer.needs.experience == "rollouts"
    if not config.model or not (samples or config.evaluation.prompts):
        return
    missing = {}
    if not prompts_given and config.prompts.is_default:
        missing["prompts.name"] = "prompts.name=file with prompts.file.path=FILE"
    if not reward_given and lacks_reward(config) and optimizer.needs.scores:
        missing["reward.name"] = "reward.name=NAME (see `lmrl plugins`, or module:function, or a reward model)"
    besides = "" if samples else ", or evaluation.prompts=0 to train without evaluation"
    card = load_card(config.model, trust_remote_code=config.trust_remote_code)
    if prompts_given and missing:
        note_story_reward(card, "reward.name")
    else:
        refuse_story_defaults(card, missing, besides)


def check_ranks(config: RLConfig, needs: Needs, ranks: int) -> None:
    """Refuse an update that cannot be shared out among the processes."""
    total = config.train.prompts_per_update
    if total % ranks:
        raise SettingsError(f"train.prompts_per_update is {total}; expected a multiple of the {ranks} processes")
    if needs.experience == "labelled" and total < 2 * ranks:
        raise SettingsError(
            f"train.prompts_per_update is {total}; expected at least {2 * ranks}, two answers per process: labelled "
            "answers are measured against the other answers of their update"
        )


def note_plain_prompts(model: LanguageModel, prompts: PromptSet) -> None:
    """Say in the log that a model that was taught to chat is given plain text, which may not be what was meant."""
    if model.card.codec.chat_template and prompts.prompt_ids is None:
        logger.info(
            "%s has a chat template, but the prompts are texts to continue; to ask them as a user's messages, give "
            "messages, or set prompts.file.chat=on",
            model.card.path,
        )


def usable_prompts(model: LanguageModel, prompts: PromptSet, spec: SamplingSpec) -> PromptSet:
    """Return the prompts that have tokens and leave room for an answer; the others are left out and counted in the log.

    Raises ``PromptError`` when none is left.
    """
    limit = spec.context_length
    lengths = [len(ids) for ids in encode_prompts(model, prompts)]
    kept = [index for index, length in enumerate(lengths) if length > 0 and (limit is None or length < limit)]
    if not kept:
        raise PromptError(
            f"none of the {len(prompts)} prompts can be used: the shortest has {min(lengths, default=0)} tokens; "
            f"expected at least one, and room for an answer in the context of {limit} tokens"
        )
    if len(kept) < len(prompts):
        longest = max(lengths)
        logger.warning(
            "%d of %d prompts were left out: they have no tokens, or leave no room in the context of %s tokens "
            "(the longest has %d)",
            len(prompts) - len(kept),
            len(prompts),
            limit,
            longest,
        )
        return prompts.select(kept)
    return prompts


def in_turns(model: LanguageModel, prompts: PromptSet) -> bool:
    """Return whether the prompts are conversations: messages, or texts and ids of rendered ones."""
    return "prompt_messages" in prompts.columns or holds_turns(model.card, encode_prompts(model, prompts))


def encode_prompts(model: LanguageModel, prompts: PromptSet) -> list[list[int]]:
    """Return the token ids of every prompt."""
    if prompts.prompt_ids is not None:
        return prompts.prompt_ids
    return [text_ids(model.card.codec, text) for text in prompts.prompts]
