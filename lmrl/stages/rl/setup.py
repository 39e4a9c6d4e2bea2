"""Putting an RL run together: models, data, reward and optimizer, all checked before any sampling.

``check`` reads the settings, ``read_texts`` the prompts and data, ``build`` makes the source and the updater.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.parameters import TrainedParameters
from lmrl.config import resolved
from lmrl.data import PromptSet, PromptSettings, load_prompts
from lmrl.data.builtin import prompt_settings
from lmrl.data.notes import is_loss_of_data, log_notes
from lmrl.data.splitting import digest_of
from lmrl.engines.opening import open_engine
from lmrl.engines.protocol import Engine, SamplingSpec
from lmrl.engines.texts import sampling_spec
from lmrl.errors import SettingsError
from lmrl.models import LanguageModel, PolicyModel, load
from lmrl.models.loading import require_trainable
from lmrl.models.text_policy import TextPolicy, make_reference, reference_spec, score_reference
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import Needs, OptimizerSpec
from lmrl.rewards import resolve as resolve_reward
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.rewards.function import RewardFunction
from lmrl.rewards.scorable import scorable_rows
from lmrl.stages.rl.auxiliary import CheckedAuxiliary, check_auxiliary, load_auxiliary, make_auxiliary
from lmrl.stages.rl.checks import (
    check_ranks,
    check_settings,
    encode_prompts,
    in_turns,
    lacks_reward,
    note_plain_prompts,
    refuse_defaults,
    usable_prompts,
)
from lmrl.stages.rl.config import RLConfig
from lmrl.stages.rl.offline import DataSource, OfflineData, load_offline
from lmrl.stages.rl.rollouts import PromptBatch, RolloutMaker
from lmrl.stages.rl.source import PromptSource
from lmrl.stages.rl.sources import make_source
from lmrl.stages.rl.starting import check_adapter, make_beside, make_policy
from lmrl.text.card import load_card
from lmrl.text.turns import end_turns
from lmrl.text.vocabulary import require_same_vocabulary
from lmrl.training.adamw import policy_adamw
from lmrl.training.devices import any_rank, make_accelerator
from lmrl.training.memory import microbatch_budget
from lmrl.training.settings import note_unread
from lmrl.training.update import Updater

logger = logging.getLogger(__name__)


@dataclass
class Checked:
    """Settings of a run, and what they name, before any model is loaded."""

    config: RLConfig
    plugins: PluginManager
    spec: OptimizerSpec
    settings: Any
    """The optimizer's settings."""
    reward: RewardFunction
    accelerator: Any
    auxiliary: CheckedAuxiliary | None

    @property
    def needs(self) -> Needs:
        """Needs of the optimizer."""
        return self.spec.needs

    @property
    def samples(self) -> bool:
        """True if the optimizer learns from samples."""
        return self.needs.experience == "rollouts"

    @property
    def wants_reference(self) -> bool:
        """True if a penalty, the optimizer or the log needs the reference."""
        kl, evaluates = self.config.kl, self.config.evaluation.prompts > 0
        penalty = self.samples and kl.beta > 0
        logged = (self.samples and kl.log_reference == "always") or (kl.log_reference != "never" and evaluates)
        beside = self.auxiliary is not None and self.auxiliary.spec.needs.reference
        return self.needs.reference or penalty or logged or beside


@dataclass
class Texts:
    """The starting model, its reference, and the prompts and data of a run, encoded for it."""

    start: LanguageModel
    other_reference: Any
    """The model of ``config.reference``, if it is named and needed."""
    spec: SamplingSpec
    training: PromptSet
    training_ids: list[list[int]]
    held_out: PromptSet
    held_out_ids: list[list[int]]
    offline: OfflineData | None
    auxiliary: OfflineData | None
    fingerprint: str
    in_turns: bool


@dataclass
class Built:
    """Source and updater of a run, with what evaluations and checkpoints need beside them."""

    source: PromptSource | DataSource
    updater: Updater
    maker: RolloutMaker
    policy: PolicyModel
    evaluation_batch: PromptBatch | None


def check(
    config: RLConfig,
    reward: Any,
    prompts: Sequence[Any] | None,
    data: Any,
    plugins: PluginManager,
    accelerator: Any = None,
    auxiliary_data: Any = None,
) -> Checked:
    """Read every setting; raises ``SettingsError`` for what cannot be trained."""
    spec, settings = config.optimizer.resolve(plugins)
    check_settings(config, spec, settings, data is not None)
    built = spec.build(settings)
    check_adapter(config, built)
    note_unread(config, plugins)
    refuse_defaults(config, spec, prompts is not None, reward is not None)
    resolved(config, plugins)  # builds every plugin's table, so that a bad one is refused before any model is loaded
    if reward is None and lacks_reward(config) and not spec.needs.scores:
        reward = no_reward
    function = configured_reward(config, plugins) if reward is None else resolve_reward(reward, None, plugins)
    accelerator = accelerator or make_accelerator(config.run)
    if getattr(accelerator, "gradient_accumulation_steps", 1) != 1:
        raise SettingsError(
            f"the accelerator has gradient_accumulation_steps={accelerator.gradient_accumulation_steps}; expected 1, "
            "because microbatches are accumulated already (train.microbatch_tokens)"
        )
    ranks = accelerator.num_processes
    check_ranks(config, spec.needs, ranks)
    auxiliary = check_auxiliary(config, spec, built, plugins, auxiliary_data, ranks)
    return Checked(config, plugins, spec, settings, function, accelerator, auxiliary)


def read_texts(checked: Checked, prompts: Sequence[Any] | None, data: Any, start: LanguageModel | None = None) -> Texts:
    """Load the starting model and the reference, and read and encode prompts and data for them."""
    config, plugins = checked.config, checked.plugins
    start, other = _models(checked, start)
    given = _dataset_rows(config, plugins) if prompts is None else prompts
    reading = PromptSettings() if prompts is None else prompt_settings(config.prompts)
    rows = load_prompts(given, reading, codec=start.card.codec)
    log_notes(logger, [note for note in rows.notes if prompts is not None or is_loss_of_data(note)])
    rows = rows.select(scorable_rows([checked.reward], rows.columns, rows.origins, config.scoring.on_unreadable))
    note_plain_prompts(start, rows)
    offline = None
    if not checked.samples:
        offline = load_offline(config.data, data, start.card, checked.needs, checked.accelerator.device)
    auxiliary = load_auxiliary(checked, start.card)
    data_sets = [one for one in (offline, auxiliary) if one is not None]
    turns = in_turns(start, rows) or any(one.in_turns(start.card) for one in data_sets)
    start = end_turns(start) if turns else start
    spec = sampling_spec(config.sampling, start.card)
    training, held_out = _split(usable_prompts(start, rows, spec), config)
    training_ids, held_out_ids = encode_prompts(start, training), encode_prompts(start, held_out)
    digests = [rows.fingerprint(), *(one.fingerprint() for one in data_sets)]
    fingerprint = digest_of(digests) if data_sets else digests[0]
    held = held_out, held_out_ids
    return Texts(start, other, spec, training, training_ids, *held, offline, auxiliary, fingerprint, turns)


TorchOptimizer = torch.optim.Optimizer | Callable[[Sequence[TrainedParameters]], torch.optim.Optimizer]
"""A torch optimizer, or what makes one of the parameters that learn."""


def build(checked: Checked, texts: Texts, torch_optimizer: TorchOptimizer | None = None) -> Built:
    """Make the policy, its updater and its source; ``torch_optimizer`` takes the place of AdamW."""
    config, needs, accelerator = checked.config, checked.needs, checked.accelerator
    optimizer = checked.spec.build(checked.settings)
    engine = _engine(checked, optimizer)
    policy = make_policy(config, optimizer, needs, texts.start, texts.in_turns)
    reference = make_reference(policy, texts.other_reference) if checked.wants_reference else None
    beside = make_beside(checked, texts, optimizer, engine, policy, reference)
    module, prepared = accelerator.prepare(policy, _torch_optimizer(policy, config, torch_optimizer))
    processor = optimizer.processor(policy.model, texts.spec, accelerator.autocast)
    support = processor.support if processor is not None else None
    token_budget = microbatch_budget(config.train, accelerator.device, policy)
    updater = Updater(
        optimizer,
        TextPolicy(
            module,
            texts.spec,
            bool(needs.values),
            optimizer.defines("heads"),
            support,
            beside.models if beside else None,
            accelerator.autocast,
        ),
        config.train,
        kl=config.kl,
        needs=needs,
        accelerator=accelerator,
        torch_optimizer=prepared,
        token_budget=token_budget,
        seed=config.run.seed,
        auxiliary=make_auxiliary(checked, texts, module, reference, token_budget),
    )
    maker = RolloutMaker(
        engine,
        policy,
        reference,
        checked.reward,
        texts.start.card,
        texts.spec,
        config.kl,
        needs,
        microbatch_budget(config.train, accelerator.device),
        processor,
        _concurrent_reward(config, checked.reward),
        TextPolicy(policy, texts.spec, with_values=False, support=support),
        engine.capabilities.exact and accelerator.mixed_precision == "no",
        bool if accelerator.num_processes == 1 else partial(any_rank, accelerator),
        beside,
    )
    if texts.offline is not None and reference is not None and needs.reference:
        frozen, as_sampled = reference, reference_spec(texts.spec)
        texts.offline.scorer = lambda inputs: score_reference(frozen, inputs, as_sampled, maker.token_budget)
    source = make_source(checked, texts, maker, updater)
    return Built(source, updater, maker, policy, _evaluation_batch(texts, config))


def _torch_optimizer(policy: PolicyModel, config: RLConfig, given: TorchOptimizer | None) -> torch.optim.Optimizer:
    """Return the torch optimizer; raises ``SettingsError`` for one without all parameters that learn."""
    trained = policy.trainable()
    if given is None:
        return policy_adamw(trained, config.train)
    made = given if isinstance(given, torch.optim.Optimizer) else given(trained)
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    missing = [one for group in trained for one in group.parameters if id(one) not in held]
    if missing:
        raise SettingsError(
            f"torch_optimizer lacks {len(missing)} of the parameters that learn, such as those of a value head or an "
            "adapter, which are made with the trainer; expected all of them: give a function of their groups, such as "
            "torch_optimizer=lambda groups: torch.optim.SGD([p for group in groups for p in group.parameters], lr=0.1)"
        )
    return made


def embedded_model() -> str:
    """Return the folder of the model that a recipe without one begins with."""
    from lmrl.stories import MODEL_PATH

    return str(MODEL_PATH)


def configured_reward(config: RLConfig, plugins: PluginManager) -> RewardFunction:
    """Return the reward that a recipe names, or the weighted sum of several."""
    tables = config.reward.tables
    if config.reward_weights:
        return resolve_reward(config.reward_weights, tables, plugins)
    return resolve_reward(config.reward.name, tables.get(config.reward.name), plugins)


def no_reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Score every response 0: the reward of a run whose optimizer reads no score."""
    return [0.0] * len(responses)


def _models(checked: Checked, start: LanguageModel | None) -> tuple[LanguageModel, Any]:
    """Return the starting model, and the reference if the settings name another model."""
    config, device = checked.config, checked.accelerator.device
    trust = config.trust_remote_code
    if start is None:
        start = load(config.model or embedded_model(), device=device, dtype=torch.float32, trust_remote_code=trust)
    require_trainable(start.model, start.card.path)
    start.model.to(device=device, dtype=torch.float32)  # a loaded model may be elsewhere, in another precision
    if not (config.reference and checked.wants_reference):
        return start, None
    require_same_vocabulary(load_card(config.reference, trust_remote_code=trust), start.card)
    return start, load(config.reference, device=device, trust_remote_code=trust).model


def _engine(checked: Checked, optimizer: PolicyOptimizer) -> Engine:
    """Return the engine. Raises ``SettingsError`` for one that this optimizer cannot learn from."""
    spec, settings = checked.config.engine.resolve(checked.plugins)
    if not spec.draws_from_policy:
        raise SettingsError(
            f"engine {spec.name!r} does not draw from the policy, so its log-probabilities are not those of "
            "what it gives, and nothing can be learned from them; use it in lmrl eval or lmrl prefer"
        )
    engine: Engine = open_engine(spec, settings)
    if optimizer.defines("processor") and not engine.capabilities.logits_processors:
        raise SettingsError(
            f"optimizer {checked.spec.name!r} restricts the tokens that are drawn, and engine {spec.name!r} "
            "has no logits processors; use engine.name=transformers"
        )
    return engine


def _dataset_rows(config: RLConfig, plugins: PluginManager) -> list[Mapping[str, Any]]:
    spec, settings = config.prompts.resolve(plugins)
    rows: list[Mapping[str, Any]] = list(spec.build(settings))
    return rows


def _split(rows: PromptSet, config: RLConfig) -> tuple[PromptSet, PromptSet]:
    """Return (training, held-out) prompts."""
    wanted = config.evaluation.prompts
    try:
        return rows.split(wanted, config.run.seed)
    except SettingsError as error:
        raise SettingsError(
            f"evaluation.prompts is {wanted}, of {len(rows)} prompts in all: {error} Lower it, set it to 0 to leave "
            "evaluation out, or bring more prompts."
        ) from error


def _evaluation_batch(texts: Texts, config: RLConfig) -> PromptBatch | None:
    held_out = texts.held_out
    if not len(held_out):
        return None
    samples = config.evaluation.samples_per_prompt
    return PromptBatch.of(held_out, texts.held_out_ids, range(len(held_out)), samples)


def _concurrent_reward(config: RLConfig, reward: Any) -> ConcurrentReward | None:
    wanted = config.scoring.concurrency
    kind = reward.concurrency if wanted == "auto" else wanted
    return None if kind == "none" else ConcurrentReward(reward, kind, config.scoring.workers)
