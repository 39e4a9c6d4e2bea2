"""Putting an RL run together: models, data, reward, optimizer and run folder, all checked before any sampling."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmrl.config import resolved, to_toml
from lmrl.data import PromptOrder, PromptSet, load_prompts
from lmrl.data.splitting import digest_of
from lmrl.errors import NonFiniteError, ResumeError, SettingsError
from lmrl.experience import Experience
from lmrl.kl import KLController
from lmrl.models import PolicyModel, freeze_copy, load
from lmrl.models.masked import MaskPolicy
from lmrl.models.scoring import reference_spec, score_logprobs
from lmrl.models.text_policy import TextPolicy
from lmrl.optimizer import PolicyOptimizer
from lmrl.plugins import PluginManager
from lmrl.rewards import resolve as resolve_reward
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.rollout import Scored
from lmrl.sampling.texts import sampling_spec
from lmrl.seeds import derive_seed
from lmrl.specs import Needs
from lmrl.stages.checkpoint import list_checkpoints, load_state, save_checkpoint
from lmrl.stages.devices import free_folder, make_accelerator
from lmrl.stages.memory import microbatch_budget
from lmrl.stages.rl_checks import (
    check_ranks,
    check_settings,
    encode_prompts,
    note_plain_prompts,
    note_unused,
    usable_prompts,
)
from lmrl.stages.rl_config import RLConfig, TrainSettings
from lmrl.stages.rl_offline import OfflineData, load_offline
from lmrl.stages.rollouts import PromptBatch, RolloutMaker
from lmrl.stages.run import CONFIG_FILE, Run, create_folder, refuse_taken, truncate_metrics, write_versions
from lmrl.stages.update import MetricMeans, Updater


@dataclass
class Session:
    """Everything that an RL run holds while it goes on."""

    config: RLConfig
    run: Run
    plugins: PluginManager
    accelerator: Any
    maker: RolloutMaker
    updater: Updater
    controller: KLController
    training: PromptSet
    training_ids: list[list[int]]
    evaluation_batch: PromptBatch | None
    order: PromptOrder
    fingerprint: str
    start_update: int = 0
    offline: OfflineData | None = None
    """What an optimizer that does not sample learns from."""

    def offline_batch(self, update: int) -> Experience:
        """Return this rank's share of the data of an update (counted from 1)."""
        assert self.offline is not None
        return self.offline.batch(self._share(self.order.indices(update - 1)))

    def further_batch(self, update: int, number: int, count: int) -> PromptBatch:
        """Return ``count`` other prompts for this rank in a further round of sampling."""
        chooser = random.Random(
            derive_seed(self.config.run.seed, "further prompts", update, self.accelerator.process_index, number)
        )
        indices = [chooser.randrange(len(self.training)) for _ in range(count)]
        return prompt_batch(self.training, self.training_ids, indices, self.config.train.group_size)

    def _share(self, indices: Sequence[int]) -> Sequence[int]:
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = len(indices) // ranks
        return indices[rank * size : (rank + 1) * size]

    def training_batch(self, update: int) -> PromptBatch:
        """Return this rank's share of the prompts of an update (counted from 1)."""
        indices = self._share(self.order.indices(update - 1))
        return prompt_batch(self.training, self.training_ids, indices, self.config.train.group_size)

    def rollout_means(self, scored: Scored, kl_rows: Tensor) -> dict[str, float]:
        """Return the rollout's numbers, averaged over the rows of all ranks."""
        from accelerate.utils import gather_object

        means = MetricMeans()
        samples = scored.samples
        count = torch.tensor(float(len(kl_rows)), device=kl_rows.device)
        columns: dict[str, Tensor] = {
            "rollout/reward": scored.scores,
            "rollout/kl": kl_rows,
            "rollout/length": samples.inputs.response_lengths,
            "rollout/terminated": samples.terminated,
            "rollout/logprob": samples.behavior_logprobs.sum(1),
        }
        # A rank whose rows were all truncated has scored nothing and knows no terms, but must sum as many numbers.
        names = gather_object(sorted(scored.score_parts)) if self.accelerator.num_processes > 1 else scored.score_parts
        for name in names:
            columns[f"rollout/reward_{name}"] = scored.score_parts.get(name, torch.zeros_like(scored.scores))
        for name, column in columns.items():
            means.add_sum(name, column.to(kl_rows).sum(), count)
        numbers = means.means(self.accelerator)
        rows = self.config.train.prompts_per_update * self.config.train.group_size
        return numbers | {"rollout/tokens": numbers["rollout/length"] * rows}

    def refresh_mask(self, update: int) -> None:
        """Let the mask policy become what the policy is, if its time has come."""
        if self.maker.mask is not None and update % self.updater.optimizer.settings.mask_update_every == 0:
            self.maker.mask.refresh(self.maker.policy.model)

    def save(self, update: int) -> None:
        """Write a checkpoint from which the run continues as if it had not stopped."""
        self.accelerator.wait_for_everyone()
        if not self.run.is_main:
            return
        policy = self.maker.policy
        if not all(bool(torch.isfinite(p).all()) for p in policy.parameters()):
            raise NonFiniteError(f"update {update}: a parameter is not finite; the last checkpoint is kept")
        state = {
            "update": update,
            "torch_optimizer": self.updater.torch_optimizer.state_dict(),
            "optimizer": self.updater.optimizer.state_dict(),
            "controller": self.controller.state_dict(),
            "prompts": self.fingerprint,
        }

        def write(folder: Path) -> None:
            policy.save(folder, self.maker.card.path)
            if self.maker.mask is not None:
                self.maker.mask.save(folder)

        path = save_checkpoint(self.run.folder, update, write, state, self.config.checkpoint.keep)
        self.plugins.observe("lmrl_checkpoint_saved", run=self.run, path=path)


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
    plugins = plugins or PluginManager()
    optimizer_spec, optimizer_settings = config.optimizer.resolve(plugins)
    check_settings(config, optimizer_spec, optimizer_settings, data is not None)
    note_unused(config, optimizer_spec, prompts is not None)
    resolved(config, plugins)  # builds every plugin's table, so that a bad one is refused before any model is loaded
    reward_function = _reward(config, reward, plugins)
    accelerator = make_accelerator(config.run)
    check_ranks(config, optimizer_spec.needs, accelerator.num_processes)
    start = load(config.model or embedded_model(), device=accelerator.device, dtype=torch.float32)
    spec = sampling_spec(config.sampling, start.card)
    rows = load_prompts(prompts if prompts is not None else _dataset_rows(config, plugins), codec=start.card.codec)
    note_plain_prompts(start, rows)
    training, held_out = _split(usable_prompts(start, rows, spec), config)
    training_ids = encode_prompts(start, training)
    held_out_ids = encode_prompts(start, held_out)
    engine_spec, engine_settings = config.engine.resolve(plugins)
    if not engine_spec.draws_from_policy:
        raise SettingsError(
            f"engine {engine_spec.name!r} does not draw from the policy, so its log-probabilities are not those of "
            "what it gives, and nothing can be learned from them; use it in lmrl eval or lmrl prefer"
        )

    needs: Needs = optimizer_spec.needs
    reference_model = load(config.reference, device=accelerator.device).model if config.reference else start.model
    reference = PolicyModel(freeze_copy(reference_model))
    offline = None
    if needs.experience != "rollouts":
        budget = microbatch_budget(config.train, accelerator.device)
        offline = load_offline(
            config.data,
            data,
            start.card,
            needs,
            lambda inputs: score_logprobs(reference, inputs, reference_spec(spec), budget),
            accelerator.device,
        )
    fingerprint = rows.fingerprint() if offline is None else digest_of([rows.fingerprint(), offline.fingerprint()])
    checkpoint, state = _newest_checkpoint(config, fingerprint) if resume else (None, None)
    base = load(checkpoint, device=accelerator.device, dtype=torch.float32) if checkpoint else start
    torch.manual_seed(derive_seed(config.run.seed, "torch"))
    critic = config.train.separate_critic or needs.separate_critic
    policy = PolicyModel(base.model, needs.values, critic, needs.action_values)
    policy.load_value_head(Path(checkpoint or start.card.path))
    torch_optimizer = make_torch_optimizer(policy, config.train)
    module, prepared = accelerator.prepare(policy, torch_optimizer)
    optimizer: PolicyOptimizer = optimizer_spec.build(optimizer_settings)
    policy.extraction = optimizer.extraction()
    controller = KLController(config.kl)
    mask = None
    if needs.mask_policy:
        mask = MaskPolicy(policy.model, spec, optimizer_settings.mask_top_p, accelerator.autocast)
        if checkpoint:
            mask.load(Path(checkpoint))

    maker = RolloutMaker(
        engine_spec.build(engine_settings),
        policy,
        reference,
        reward_function,
        start.card,
        spec,
        config.kl,
        needs,
        microbatch_budget(config.train, accelerator.device),
        mask,
        _concurrent_reward(config, reward_function),
        engine_spec.streams,
    )
    support = mask.support if mask is not None else None
    policy_face = TextPolicy(module, spec, needs.values, needs.action_values, support)
    updater = Updater(optimizer, policy_face, prepared, accelerator, config.train, config.kl)
    if state is not None:  # after the updater, which reads the peak learning rates: a checkpoint holds scheduled ones
        prepared.load_state_dict(state["torch_optimizer"])
        optimizer.load_state_dict(state["optimizer"])
        controller.load_state_dict(state["controller"])
    if not config.run.folder:
        config = replace(config, run=replace(config.run, folder=free_folder(config.optimizer.name)))
    run = _open_run(config, plugins, accelerator, (int(state["update"]) if state else -1) if resume else None)
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
        offline=offline,
    )


def prompt_batch(prompts: PromptSet, ids: Sequence[list[int]], indices: Sequence[int], samples: int) -> PromptBatch:
    """Return the prompts at ``indices``, each repeated ``samples`` times."""
    rows = [index for index in indices for _ in range(samples)]
    return PromptBatch(
        [ids[row] for row in rows],
        [prompts.prompts[row] for row in rows],
        {name: [column[row] for row in rows] for name, column in prompts.columns.items()},
        [place for place in range(len(indices)) for _ in range(samples)],
    )


def make_torch_optimizer(policy: PolicyModel, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return AdamW over the policy, with a learning rate of its own for the value head.

    It is fused where all parameters are of a kind that has that (CPU and CUDA): 3 to 5 times as fast as one operation
    over all tensors after another. A group's ``role`` says whether it is the policy's or the value function's.
    """
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained, "lr": settings.learning_rate, "role": "policy"}]
    head, trunk = policy.value_parameters()
    if head:
        groups.append({"params": head, "lr": settings.value_learning_rate, "role": "value"})
    if trunk:
        groups.append({"params": trunk, "lr": settings.learning_rate, "role": "value"})
    betas = (settings.adam_beta1, settings.adam_beta2)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    kind = {"fused": True} if fused else {"foreach": True}
    return torch.optim.AdamW(groups, betas=betas, weight_decay=settings.weight_decay, **kind)


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


def _reward(config: RLConfig, reward: Any, plugins: PluginManager) -> Any:
    if reward is not None:
        return resolve_reward(reward, None, plugins)
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


def _open_run(config: RLConfig, plugins: PluginManager, accelerator: Any, resumed_update: int | None) -> Run:
    is_main = bool(accelerator.is_main_process)
    trackers = [plugins.get("tracker", name) for name in config.trackers]  # an unknown one leaves no folder behind
    folder = Path(config.run.folder)
    run = Run(folder, config, is_main)
    if not is_main:
        return run
    if resumed_update is None:
        refuse_taken(folder, "rl")
    run.hold()
    versions = {info.name: info.version for info in plugins.listing() if info.version}
    if resumed_update is None:
        create_folder(folder, to_toml(resolved(config, plugins)), versions)
    else:
        write_versions(folder, versions)
        truncate_metrics(folder, resumed_update)
    for tracker in trackers:
        run.trackers.append(tracker.build(folder, None if resumed_update is None else resumed_update + 1))
    return run
