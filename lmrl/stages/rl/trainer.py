"""``RLTrainer``: reinforcement learning of a language model, from a notebook or from a recipe."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from lmrl.errors import JudgeError, ResumeError, SettingsError
from lmrl.models import LanguageModel
from lmrl.models.processors import load_processor, save_processor
from lmrl.models.saving import saved_dtype
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import OptimizerSpec
from lmrl.reporting.metrics import read_metrics
from lmrl.seeds import derive_seed
from lmrl.stages.rl.auxiliary import auxiliary_table
from lmrl.stages.rl.config import RLConfig
from lmrl.stages.rl.evaluation import Evaluation, evaluate_policy
from lmrl.stages.rl.keywords import config_of
from lmrl.stages.rl.offline import DataSource
from lmrl.stages.rl.setup import Built, Checked, Texts, TorchOptimizer, build, check, read_texts
from lmrl.stages.rl.source import PromptSource, errors_named
from lmrl.training.checkpoint import STATE_FILE, list_checkpoints, load_state, save_run, write_checkpoint
from lmrl.training.devices import any_rank, free_folder
from lmrl.training.plugin_files import plugins_of
from lmrl.training.run import CONFIG_FILE, Run, open_run, truncate_metrics
from lmrl.training.schedule import extension_note, finished_note
from lmrl.training.stopping import stop_requests
from lmrl.training.trainer import Drawn, Trainer

logger = logging.getLogger(__name__)


class RLTrainer(Trainer):
    """Maximise E[score] - beta KL(policy || reference) with any registered policy optimizer.

    ``model`` is a folder, a hub id or a loaded ``LanguageModel``. ``optimizer`` is a name, a mapping of its settings
    with a ``name``, or an ``OptimizerSpec``. ``prompts`` are texts, rows, a path or a table; ``reward`` is a callable,
    a name or a mapping of names to weights; ``data`` is what optimizers that do not sample learn from. ``auxiliary`` is
    a mapping with the ``weight`` of a second stream, its ``optimizer``, its ``data`` and its ``rows`` per step. Further
    keywords are settings of `lmrl rl` by their last names (``group_size=8``, ``learning_rate=1e-5``, ``beta=0.0``,
    ``max_new_tokens=64``) or whole sections (``train={...}``). Without ``evaluation`` no prompts are held out.

    ``accelerator`` and ``torch_optimizer`` take the place of those that the settings describe; the latter is a torch
    optimizer, or a function of the groups of parameters that learn (``lmrl.algorithms.parameters``) which returns one.
    A loaded model is trained in place. No run folder is written: ``steps`` yields the metrics, ``save`` writes a
    checkpoint.

    Raises ``SettingsError``, ``ModelError`` and ``DataError`` before anything is sampled.
    """

    source: PromptSource | DataSource
    """Source of the experience: responses to prompts, or stored data."""

    def __init__(
        self,
        model: str | Path | LanguageModel = "",
        *,
        optimizer: str | Mapping[str, Any] | OptimizerSpec = "ppo",
        prompts: Any = None,
        reward: Any = None,
        data: Any = None,
        auxiliary: Mapping[str, Any] | None = None,
        plugins: PluginManager | None = None,
        accelerator: Any = None,
        torch_optimizer: TorchOptimizer | None = None,
        **settings: Any,
    ) -> None:
        plugins = plugins or PluginManager()
        if isinstance(optimizer, OptimizerSpec):
            plugins.offer_optimizer(optimizer)
            optimizer = optimizer.name
        start = model if isinstance(model, LanguageModel) else None
        rows = None
        if auxiliary is not None:
            settings["auxiliary"], rows = auxiliary_table(auxiliary)
        config = config_of("" if start else str(model), optimizer, settings, plugins)
        if start is not None:
            config = replace(config, model=start.card.path)
        checked = check(config, reward, prompts, data, plugins, accelerator, rows)
        texts = read_texts(checked, prompts, data, start)
        self._take(checked, texts, build(checked, texts, torch_optimizer), Run(Path(), config, is_main=False))

    @classmethod
    def from_config(
        cls,
        config: RLConfig,
        *,
        reward: Any = None,
        prompts: Any = None,
        data: Any = None,
        plugins: PluginManager | None = None,
        resume: bool = False,
    ) -> Self:
        """Return the trainer of a recipe, with its run folder; ``run`` trains it to the end.

        ``reward``, ``prompts`` and ``data`` take the place of the configuration's. With ``resume`` it continues from
        the newest checkpoint in ``config.run.folder``.
        """
        plugins = plugins or plugins_of(config.run.folder, resume)
        checked = check(config, reward, prompts, data, plugins)
        texts = read_texts(checked, prompts, data)
        checkpoint = _newest_checkpoint(config) if resume else None
        state = _checked_state(checkpoint, texts, config.optimizer.name) if checkpoint else None
        built = build(checked, texts)
        trainer = cls.__new__(cls)
        trainer._take(checked, texts, built, Run(Path(), config, is_main=False))
        if checkpoint is not None and state is not None:
            trainer._restore(checkpoint, state)
            _note_length(config, int(state["update"]), int(state.get("updates", config.train.updates)))
        if not config.run.folder:
            config = replace(config, run=replace(config.run, folder=free_folder(config.optimizer.name)))
        last = (trainer.updates if state else -1) if resume else None
        trainer.config = config
        trainer.drawn = trainer._show
        trainer.log = open_run(config, plugins, checked.accelerator.is_main_process, "rl", "update", last)
        return trainer

    def _take(self, checked: Checked, texts: Texts, built: Built, log: Run) -> None:
        follows = built.maker.processor is not None or built.maker.beside is not None
        super().__init__(built.source, built.updater, updated=self._follow if follows else None)
        if checked.plugins.observed("lmrl_rollout"):
            self.drawn = self._show
        self.config, self.plugins, self.accelerator = checked.config, checked.plugins, checked.accelerator
        self.texts, self.maker, self.policy = texts, built.maker, built.policy
        self.evaluation_batch = built.evaluation_batch
        self.log = log
        """The run folder and its trackers; one that writes nothing where there is none."""

    def _follow(self, update: int) -> None:
        """Let what is made of the policy follow it."""
        if self.maker.processor is not None:
            self.maker.processor.after_update(update, self.policy.model)
        if self.maker.beside is not None:
            self.maker.beside.follow()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's and the reward's processes, and let go of the run folder."""
        with ExitStack() as ends:  # each of them also when another one raises
            ends.callback(self.log.close)
            ends.callback(self.maker.close)

    def _show(self, drawn: Drawn) -> None:
        """Show the rollout to observers, and its distributions to trackers."""
        self.log.update = self.updates + 1
        if self.texts.offline is None:
            self.plugins.observe("lmrl_rollout", run=self.log, rollout=drawn.experience)
        for name, values in drawn.histograms.items():
            self.log.log_histogram(self.updates + 1, name, values)

    def evaluate(self) -> Evaluation | None:
        """Evaluate on the held-out prompts, always with the same seed; None if no prompts are held out."""
        batch, settings = self.evaluation_batch, self.config.evaluation
        if batch is None:
            return None
        self.maker.publish(self.updates)
        with self.accelerator.autocast(), errors_named(f"evaluation after update {self.updates}"):
            result = evaluate_policy(self.maker, batch, derive_seed(self.config.run.seed, "evaluation"), settings.show)
        self.log.log_texts(self.updates, "evaluation", result.texts)
        return result

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint in the transformers layout, from which ``restore`` continues; every rank calls this.

        Raises ``SettingsError`` for a folder that holds something else.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / STATE_FILE).exists():
            raise SettingsError(f"{folder} exists and holds no checkpoint of a run; choose another folder")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_checkpoint(folder, self._write, self._state())
        self.accelerator.wait_for_everyone()
        return folder

    def restore(self, folder: str | Path) -> None:
        """Continue from a checkpoint of a trainer with the same model, prompts and settings.

        Raises ``ResumeError`` for a folder without a checkpoint and for other prompts or data.
        """
        self._restore(Path(folder), _checked_state(Path(folder), self.texts, self.config.optimizer.name))

    def run(self, progress: bool = True) -> tuple[Evaluation | None, Evaluation | None]:
        """Train to ``config.train.updates``, evaluating, logging and saving; return the first and last evaluations.

        Ctrl-C finishes the update, saves and returns; a second one stops at once.
        """
        config, log, before, after = self.config, self.log, None, None
        if log.folder == Path():
            raise SettingsError(
                "run() writes a run folder; use steps(count), or make the trainer by from_config(config)"
            )
        total = config.train.updates
        if self.updates == 0:
            with self._saved_first():
                before = self.evaluate()
            log.log(0, before.metrics() if before else {})
        else:
            after = self._evaluate_lost()
        hidden = not (progress and log.is_main)
        bar = tqdm(total=total, initial=self.updates, desc=config.optimizer.name, unit="update", disable=hidden)
        with bar, stop_requests("update") as stop_requested:
            stop = False
            while self.updates < total and not stop:
                with self._saved_first():
                    metrics = self.step()
                update, last = self.updates, self.updates == total
                stop = any_rank(self.accelerator, stop_requested())
                if _due(update, config.evaluation.every) or last:
                    with self._saved_first(metrics):
                        after = self.evaluate()
                    metrics |= after.metrics() if after else {}
                log.log(update, metrics)
                self.plugins.observe("lmrl_step_end", run=log, step=update, metrics=metrics)
                if _due(update, config.checkpoint.every) or last or stop:
                    self._save_run()
                bar.set_postfix_str(_postfix(metrics))
                bar.update()
        return before, after

    def _evaluate_lost(self) -> Evaluation | None:
        """Make the evaluation that was due when the run stopped, because a judge could not go on, and log it."""
        last = self.updates == self.config.train.updates
        records = read_metrics(self.log.folder) if self.log.is_main else []
        logged = bool(records) and records[-1]["update"] == self.updates
        lost = logged and "evaluation/length" not in records[-1]
        due = self.evaluation_batch is not None and (last or _due(self.updates, self.config.evaluation.every))
        if not (due and any_rank(self.accelerator, lost)):
            return None
        metrics = records[-1] if records else None
        if self.log.is_main:
            truncate_metrics(self.log.folder, self.updates - 1)
        with self._saved_first(metrics):
            found = self.evaluate()
        self.log.log(self.updates, {**(metrics or {}), **(found.metrics() if found else {})})
        return found

    def _write(self, folder: Path) -> None:
        card = self.texts.start.card
        dtype = saved_dtype(self.config.checkpoint.dtype, self.texts.start.stored_dtype)
        self.policy.save(folder, card.files or card.path, dtype)
        if self.maker.processor is not None:
            save_processor(self.maker.processor, folder)
        if self.maker.beside is not None:
            self.maker.beside.save(folder)

    def _state(self) -> dict[str, Any]:
        name = self.config.optimizer.name
        texts = {"prompts": self.texts.fingerprint, "optimizer_name": name}
        return self.updater.state_dict() | texts | {"source": self.source.state_dict()}

    def _restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.policy.restore(folder, self.config.trust_remote_code)
        if self.maker.processor is not None:
            load_processor(self.maker.processor, folder)
        if self.maker.beside is not None:
            self.maker.beside.restore(folder)
        self.updater.load_state_dict(state)
        self.source.load_state_dict(state.get("source", {}))

    def _save_run(self) -> None:
        """Write a checkpoint into the run folder."""
        save_run(self.log, self.accelerator, self.plugins, self.updates, self.policy, self._write, self._state)

    @contextmanager
    def _saved_first(self, metrics: Mapping[str, float] | None = None) -> Iterator[None]:
        """Save the state when a judge cannot go on, so that a resumed run repeats nothing.

        ``metrics`` are those of an update that is not logged yet.
        """
        try:
            yield
        except JudgeError as error:
            if self.accelerator.num_processes > 1:  # saving waits for the other ranks, which have not failed
                raise
            if metrics is not None:
                self.log.log(self.updates, metrics)
            if self.updates > 0:
                self._save_run()
            folder = self.log.folder
            where = f"holds the state after update {self.updates}" if self.updates else "holds no update yet"
            raise type(error)(f"{error} {folder} {where}; continue with lmrl rl --resume {folder}") from error


def _due(update: int, every: int) -> bool:
    return every > 0 and update % every == 0


def _postfix(metrics: Mapping[str, float]) -> str:
    parts = []
    if "optimizer/loss" in metrics and "rollout/length" not in metrics:
        parts.append(f"loss {metrics['optimizer/loss']:.3f}")
    elif "rollout/length" in metrics:
        parts.append(f"reward {metrics['rollout/reward']:.3f}" if "rollout/reward" in metrics else "no scores")
    if "rollout/kl" in metrics:
        parts.append(f"KL {round(metrics['rollout/kl'], 2) + 0.0:.2f}")
    return ", ".join([*parts, f"{metrics.get('time/tokens_per_second', 0.0):.0f} tokens/s"])


def _newest_checkpoint(config: RLConfig) -> Path | None:
    """Return the checkpoint to continue from; None if the run was killed before its first."""
    folder = Path(config.run.folder)
    if not (folder / CONFIG_FILE).exists():
        raise ResumeError(f"{folder} holds no run to continue; expected the folder that a run was started in")
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def _checked_state(checkpoint: Path, texts: Texts, optimizer: str) -> dict[str, Any]:
    """Return a checkpoint's state; raises ``ResumeError`` if it is of another stage, optimizer, prompts or data."""
    state = load_state(checkpoint)
    if "prompts" not in state:
        raise ResumeError(f"{checkpoint} was not written by lmrl rl; expected a checkpoint of it")
    found = state.get("optimizer_name", optimizer)
    if found != optimizer:
        raise ResumeError(f"{checkpoint} is of optimizer {found!r}, and this trainer's is {optimizer!r}")
    if state["prompts"] != texts.fingerprint:
        raise ResumeError(
            f"the prompts or the data have changed since {checkpoint.name} was written, so the run would not be "
            "the same; bring back the old data, or start a new run from that checkpoint with model=" + str(checkpoint)
        )
    return state


def _note_length(config: RLConfig, done: int, planned: int) -> None:
    """Log what another number of updates changes in a resumed run, or that nothing is left to do."""
    settings = config.train
    for note in (extension_note(done, planned, settings.updates, settings), finished_note(done, settings.updates)):
        if note:
            logger.warning(note)
