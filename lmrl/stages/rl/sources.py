"""The source of a run by its settings: responses to prompts that a sampler chooses, or data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmrl.algorithms.prompts import PromptPool
from lmrl.models.text_policy import FrozenReference, TextPolicy
from lmrl.seeds import PromptOrder, derive_seed
from lmrl.stages.rl.first_update import check_data
from lmrl.stages.rl.offline import DataSource, OfflineData, OrderedData
from lmrl.stages.rl.rollouts import RolloutMaker
from lmrl.stages.rl.source import PromptSource, PromptStream
from lmrl.training.update import Updater

if TYPE_CHECKING:
    from lmrl.stages.rl.setup import Checked, Texts


def make_source(checked: Checked, texts: Texts, maker: RolloutMaker, updater: Updater) -> PromptSource | DataSource:
    """Return the source of a run; raises ``SettingsError`` for prompts that the sampler cannot choose from."""
    if texts.offline is not None:
        return _data_source(checked, texts.offline, maker, updater)
    config, accelerator = checked.config, checked.accelerator
    stream = _prompt_stream(checked, texts)
    frozen, reference = None, maker.reference
    if isinstance(reference, FrozenReference) and not config.reference and maker.processor is None:
        frozen = TextPolicy(reference.policy, texts.spec, with_values=False)
    resamples, seed = config.train.resamples, config.run.seed
    replay = None
    if config.replay.share:
        from lmrl.stages.rl.replay import ReplayBuffer

        replay = ReplayBuffer(config.replay, config.train.prompts_per_update, seed, accelerator)
    controller = updater.controller
    return PromptSource(maker, stream, updater.optimizer, controller, accelerator, resamples, seed, frozen, replay)


def _prompt_stream(checked: Checked, texts: Texts) -> PromptStream:
    config, accelerator, prompts = checked.config, checked.accelerator, texts.training
    spec, settings = config.prompt_sampler.resolve(checked.plugins)
    batch, size = config.train.prompts_per_update, config.train.group_size
    sampler = spec.build(settings, PromptPool(prompts.prompts, prompts.columns, batch, config.run.seed, size))
    rank, ranks = accelerator.process_index, accelerator.num_processes
    return PromptStream(prompts, texts.training_ids, sampler, batch, size, spec.name, rank, ranks)


def _data_source(checked: Checked, data: OfflineData, maker: RolloutMaker, updater: Updater) -> DataSource:
    config, accelerator = checked.config, checked.accelerator
    order = PromptOrder(len(data), config.train.prompts_per_update, derive_seed(config.run.seed, "prompts"))
    model, starts_as_reference = maker.policy.model, not config.reference

    def check_first(batch: Any) -> None:
        if starts_as_reference and updater.updates == 0:
            check_data(batch, updater.policy, accelerator, model)

    return DataSource(OrderedData(data, order, accelerator), check_first)
