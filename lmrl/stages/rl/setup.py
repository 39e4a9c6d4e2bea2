"""Putting an RL run together: models, data, reward, optimizer and run folder, all checked before any sampling."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lmrl.algorithms.kl import KLController
from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.config import resolved
from lmrl.data import PromptOrder, PromptSet, PromptSettings, load_prompts
from lmrl.data.builtin import prompt_settings
from lmrl.data.notes import is_loss_of_data, log_notes
from lmrl.data.splitting import digest_of
from lmrl.engines.opening import open_engine
from lmrl.engines.texts import sampling_spec
from lmrl.errors import ResumeError, SettingsError
from lmrl.models import PolicyModel, load
from lmrl.models.loading import require_trainable
from lmrl.models.processors import load_processor
from lmrl.models.reference import AdapterOff, FrozenReference, Reference, score_reference
from lmrl.models.saving import saved_dtype
from lmrl.models.text_policy import TextPolicy, reference_spec
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import Needs
from lmrl.rewards import resolve as resolve_reward
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.rewards.function import RewardFunction
from lmrl.rewards.scorable import scorable_rows
from lmrl.seeds import derive_seed
from lmrl.stages.rl.checks import (
    check_ranks,
    check_settings,
    encode_prompts,
    in_turns,
    note_plain_prompts,
    refuse_defaults,
    usable_prompts,
)
from lmrl.stages.rl.config import RLConfig
from lmrl.stages.rl.offline import load_offline
from lmrl.stages.rl.rollouts import PromptBatch, RolloutMaker
from lmrl.stages.rl.session import Session, prompt_batch
from lmrl.stages.rl.starting import check_adapter, make_policy, refuse_second_adapter
from lmrl.text.card import load_card
from lmrl.text.turns import end_turns
from lmrl.text.vocabulary import require_same_vocabulary
from lmrl.training.adamw import ParameterGroup, make_adamw
from lmrl.training.checkpoint import list_checkpoints, load_state
from lmrl.training.devices import any_rank, free_folder, make_accelerator
from lmrl.training.memory import microbatch_budget
from lmrl.training.opening import open_run
from lmrl.training.plugin_files import plugins_of
from lmrl.training.proximal import proximal_logprobs
from lmrl.training.run import (
    CONFIG_FILE,
)
from lmrl.training.schedule import extension_note, finished_note
from lmrl.training.settings import note_unread
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings

logger = logging.getLogger(__name__)


def open_session(
    config: RLConfig,
    *,
    reward: Any,
    prompts: Sequence[Any] | None,
    data: Any,
    plugins: PluginManager | None,
    resume: bool,
) -> Session:
    """Build a session; every setting is checked here, so that a refused run has sampled nothing."""
    plugins = plugins or plugins_of(config.run.folder, resume)
    optimizer_spec, optimizer_settings = config.optimizer.resolve(plugins)
    check_settings(config, optimizer_spec, optimizer_settings, data is not None)
    refuse_second_adapter(config)
    note_unread(config, plugins)
    refuse_defaults(config, optimizer_spec, prompts is not None, reward is not None)
    resolved(config, plugins)  # builds every plugin's table, so that a bad one is refused before any model is loaded
    given = reward is not None
    reward_function = resolve_reward(reward, None, plugins) if given else configured_reward(config, plugins)
    accelerator = make_accelerator(config.run)
    check_ranks(config, optimizer_spec.needs, accelerator.num_processes)
    trust, device = config.trust_remote_code, accelerator.device
    start = load(config.model or embedded_model(), device=device, dtype=torch.float32, trust_remote_code=trust)
    require_trainable(start.model, start.card.path)
    other = None
    if config.reference:
        require_same_vocabulary(load_card(config.reference, trust_remote_code=trust), start.card)
        other = load(config.reference, device=device, trust_remote_code=trust).model
    given_rows = _dataset_rows(config, plugins) if prompts is None else prompts
    reading = PromptSettings() if prompts is None else prompt_settings(config.prompts)
    rows = load_prompts(given_rows, reading, codec=start.card.codec)
    log_notes(logger, [note for note in rows.notes if prompts is not None or is_loss_of_data(note)])
    rows = rows.select(scorable_rows([reward_function], rows.columns, rows.origins, config.scoring.on_unreadable))
    note_plain_prompts(start, rows)
    needs: Needs = optimizer_spec.needs
    frozen = None
    if other is not None or config.adapter.method == "none":
        frozen = FrozenReference(start.model if other is None else other)
    offline = None
    if needs.experience != "rollouts":
        budget = microbatch_budget(config.train, accelerator.device)
        as_sampled = reference_spec(sampling_spec(config.sampling, start.card))
        offline = load_offline(
            config.data,
            data,
            start.card,
            needs,
            lambda inputs: score_reference(reference, inputs, as_sampled, budget),
            accelerator.device,
        )
    turns = in_turns(start, rows) or (offline is not None and offline.in_turns(start.card))
    start = end_turns(start) if turns else start
    spec = sampling_spec(config.sampling, start.card)
    training, held_out = _split(usable_prompts(start, rows, spec), config)
    training_ids = encode_prompts(start, training)
    held_out_ids = encode_prompts(start, held_out)
    engine_spec, engine_settings = config.engine.resolve(plugins)
    if not engine_spec.draws_from_policy:
        raise SettingsError(
            f"engine {engine_spec.name!r} does not draw from the policy, so its log-probabilities are not those of "
            "what it gives, and nothing can be learned from them; use it in lmrl eval or lmrl prefer"
        )
    engine = open_engine(engine_spec, engine_settings)
    optimizer: PolicyOptimizer = optimizer_spec.build(optimizer_settings)
    check_adapter(config, optimizer)
    if optimizer.defines("processor") and not engine.capabilities.logits_processors:
        raise SettingsError(
            f"optimizer {optimizer_spec.name!r} restricts the tokens that are drawn, and engine {engine_spec.name!r} "
            "has no logits processors; use engine.name=transformers"
        )
    fingerprint = rows.fingerprint() if offline is None else digest_of([rows.fingerprint(), offline.fingerprint()])
    checkpoint, state = _newest_checkpoint(config, fingerprint) if resume else (None, None)
    policy = make_policy(config, optimizer, needs, start, checkpoint, turns)
    reference: Reference = frozen if frozen is not None else AdapterOff(policy)
    torch_optimizer = make_torch_optimizer(policy, config.train)
    module, prepared = accelerator.prepare(policy, torch_optimizer)
    controller = KLController(config.kl)
    processor = optimizer.processor(policy.model, spec, accelerator.autocast)
    if processor is not None and checkpoint:
        load_processor(processor, Path(checkpoint))

    maker = RolloutMaker(
        engine,
        policy,
        reference,
        reward_function,
        start.card,
        spec,
        config.kl,
        needs,
        microbatch_budget(config.train, accelerator.device),
        processor,
        _concurrent_reward(config, reward_function),
    )
    support = processor.support if processor is not None else None
    own = TextPolicy(policy, spec, with_values=False, support=support)
    maker.proximal = lambda samples: proximal_logprobs(own, samples, maker.token_budget)
    maker.on_any_rank = lambda flag: any_rank(accelerator, flag)
    maker.exact = engine.capabilities.exact and accelerator.mixed_precision == "no"
    policy_face = TextPolicy(module, spec, bool(needs.values), optimizer.defines("heads"), support)
    updater = Updater(
        optimizer, policy_face, prepared, accelerator, config.train, config.kl, optimizer_spec.needs.importance
    )
    if state is not None:  # after the updater, which reads the peak learning rates: a checkpoint holds scheduled ones
        prepared.load_state_dict(state["torch_optimizer"])
        optimizer.load_state_dict(state["optimizer"])
        controller.load_state_dict(state["controller"])
        _note_length(config.train, int(state["update"]), int(state.get("updates", config.train.updates)))
    if not config.run.folder:
        config = replace(config, run=replace(config.run, folder=free_folder(config.optimizer.name)))
    last = (int(state["update"]) if state else -1) if resume else None
    run = open_run(config, plugins, accelerator.is_main_process, "rl", "update", last)
    return Session(
        config=config,
        run=run,
        plugins=plugins,
        accelerator=accelerator,
        maker=maker,
        updater=updater,
        controller=controller,
        training=training,
        training_ids=training_ids,
        evaluation_batch=_evaluation_batch(held_out, held_out_ids, config),
        order=PromptOrder(
            len(training if offline is None else offline),
            config.train.prompts_per_update,
            derive_seed(config.run.seed, "prompts"),
        ),
        fingerprint=fingerprint,
        start_update=int(state["update"]) if state else 0,
        dtype=saved_dtype(config.checkpoint.dtype, start.stored_dtype),
        offline=offline,
    )


def make_torch_optimizer(policy: PolicyModel, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return AdamW over the policy, with a learning rate of its own for the value head."""
    trained = policy.policy_parameters()
    head, trunk = policy.value_parameters()
    groups = [
        ParameterGroup(trained, settings.learning_rate),
        ParameterGroup(head, settings.value_learning_rate, "value"),
        ParameterGroup(trunk, settings.learning_rate, "value"),
    ]
    return make_adamw(groups, settings)


def embedded_model() -> str:
    """Return the folder of the model that a recipe without one begins with."""
    from lmrl.stories import MODEL_PATH

    return str(MODEL_PATH)


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


def _evaluation_batch(held_out: PromptSet, ids: list[list[int]], config: RLConfig) -> PromptBatch | None:
    if not len(held_out):
        return None
    return prompt_batch(held_out, ids, range(len(held_out)), config.evaluation.samples_per_prompt)


def configured_reward(config: RLConfig, plugins: PluginManager) -> RewardFunction:
    """Return the reward that a recipe names, or the weighted sum of several."""
    tables = config.reward.tables
    if config.reward_weights:
        return resolve_reward(config.reward_weights, tables, plugins)
    return resolve_reward(config.reward.name, tables.get(config.reward.name), plugins)


def _concurrent_reward(config: RLConfig, reward: Any) -> ConcurrentReward | None:
    wanted = config.scoring.concurrency
    kind = reward.concurrency if wanted == "auto" else wanted
    return None if kind == "none" else ConcurrentReward(reward, kind, config.scoring.workers)


def _newest_checkpoint(config: RLConfig, fingerprint: str) -> tuple[str, dict[str, Any]] | tuple[None, None]:
    """Return the checkpoint to go on from and its state, or nothing if the run was killed before its first."""
    folder = Path(config.run.folder)
    if not (folder / CONFIG_FILE).exists():
        raise ResumeError(f"{folder} holds no run to continue; expected the folder that a run was started in")
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None, None
    state = load_state(checkpoints[-1])
    if state["prompts"] != fingerprint:
        raise ResumeError(
            f"the prompts have changed since {checkpoints[-1].name} was written, so the run would not be the same; "
            "bring back the old data, or start a new run from that checkpoint with model=" + str(checkpoints[-1])
        )
    return str(checkpoints[-1]), state


def _note_length(settings: TrainSettings, done: int, planned: int) -> None:
    """Log what another number of updates changes in a resumed run, or that nothing is left to do."""
    for note in (extension_note(done, planned, settings.updates, settings), finished_note(done, settings.updates)):
        if note:
            logger.warning(note)
