"""The training loop that pretraining, supervised fine-tuning and reward models share.

A stage says what a step's rows are, what their loss is and how it is evaluated (a ``Task``); the loop accumulates over
microbatches and ranks with the global count, clips, schedules, evaluates, saves and resumes. What happens in step s is
a function of the run's seed and of s, so a resumed run restores no generator. Leaves out sharded training.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lmrl.errors import ResumeError
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.reporting.plots import Panel, plot_run
from lmrl.seeds import derive_seed
from lmrl.training.adamw import ParameterGroup, make_adamw
from lmrl.training.checkpoint import list_checkpoints, load_state, save_run
from lmrl.training.devices import any_rank, free_folder, gradient_sync
from lmrl.training.plugin_files import plugins_of
from lmrl.training.run import (
    Run,
    open_run,
    stage_of,
)
from lmrl.training.schedule import extension_note, finished_note, schedule_factor
from lmrl.training.settings import SupervisedSettings
from lmrl.training.stopping import stop_requests
from lmrl.training.update import require_finite

logger = logging.getLogger(__name__)
UNIT = "step"
PANELS = (
    Panel("loss (nats per {unit})", "train/loss", "evaluation/loss"),
    Panel("learning rate", "train/learning_rate"),
)


class Task(Protocol):
    """Task of a supervised stage. ``module`` is trained as far as its parameters require gradients."""

    module: nn.Module
    unit: str
    """Unit that losses are averaged over: "token" or "row", for messages and plots."""

    def microbatches(self, step: int, rank: int, ranks: int) -> Sequence[Any]:
        """Return this rank's share of step 1, 2, ...: a function of its arguments and of the run's seed alone."""
        ...

    def count(self, microbatch: Any) -> int:
        """Return how many tokens or rows of it have a loss; known before the forward pass."""
        ...

    def tokens(self, microbatch: Any) -> int:
        """Return the positions that a forward pass over it computes, for the speed."""
        ...

    def loss(self, module: nn.Module, microbatch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses over ``count``, and sums of further metrics over the same count."""
        ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Return held-out numbers, "loss" among them; logged as evaluation/<name>. Changes no training state."""
        ...

    def texts(self) -> list[str]:
        """Return sample texts of the moment, or an empty list."""
        ...

    def speed(self, tokens_per_second: float) -> dict[str, float]:
        """Return further speed numbers, such as the share of the device's peak, or an empty dict."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer in the transformers layout."""
        ...

    def load(self, folder: Path) -> None:
        """Read back into ``module`` what ``save`` wrote, bit for bit."""
        ...


@dataclass(frozen=True)
class FitResult:
    """Result of a supervised run; evaluations are those of the first and of the last step."""

    folder: Path
    checkpoint: Path
    steps: int
    first_evaluation: dict[str, float]
    evaluation: dict[str, float]
    interrupted: bool


def fit(
    task: Task,
    *,
    stage: str,
    config: Any,
    accelerator: Any,
    plugins: PluginManager | None = None,
    fingerprint: str = "",
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a task and write a run folder.

    ``config`` is the stage's configuration; its sections ``run``, ``train`` (``SupervisedSettings``), ``checkpoint``
    and ``trackers`` are read here. ``fingerprint`` stands for the data: a resumed run refuses other data. Check
    everything else before calling this: from here on a folder exists. A resumed run goes on from its newest
    checkpoint, or from the beginning if it was killed before the first.
    """
    return _Fit(
        task, stage, config, accelerator, plugins or plugins_of(config.run.folder, resume), fingerprint, progress
    ).run(resume)


class _Fit:
    """One call of ``fit``: the pieces that every step needs."""

    def __init__(
        self,
        task: Task,
        stage: str,
        config: Any,
        accelerator: Any,
        plugins: PluginManager,
        fingerprint: str,
        progress: bool,
    ) -> None:
        self.task, self.stage, self.config, self.accelerator = task, stage, config, accelerator
        self.plugins, self.fingerprint = plugins, fingerprint
        self.settings: SupervisedSettings = config.train
        self.show_bar = progress and bool(accelerator.is_main_process)

    def run(self, resume: bool) -> FitResult:
        checkpoint, state = self._newest() if resume else (None, None)
        if checkpoint is not None:
            self.task.load(checkpoint)
        trained = [parameter for parameter in self.task.module.parameters() if parameter.requires_grad]
        self.optimizer = make_adamw([ParameterGroup(trained, self.settings.learning_rate)], self.settings)
        self.module, self.prepared = self.accelerator.prepare(self.task.module, self.optimizer)
        if state is not None:
            self.prepared.load_state_dict(state["torch_optimizer"])
        start = int(state["step"]) if state is not None else None
        if state is not None:
            self._note_length(int(state["step"]), int(state.get("steps", self.settings.steps)))
        self.log = self._open_run(start, resume)
        error: BaseException | None = None
        try:
            self.plugins.observe("lmrl_run_start", run=self.log)
            return self._train(start)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.plugins.observe("lmrl_run_end", run=self.log, error=error)
            self.log.close()

    def _train(self, start: int | None) -> FitResult:
        settings, log = self.settings, self.log
        if start is None:
            log.log(0, self._evaluate(0))
        done, interrupted = start or 0, False
        bar = tqdm(
            total=settings.steps, initial=done, desc=self.stage, unit=UNIT, disable=not self.show_bar, mininterval=0.5
        )
        with bar, stop_requests(UNIT) as stop_requested:
            for step in range(done + 1, settings.steps + 1):
                log.update = step
                metrics = self._step(step)
                last = step == settings.steps
                stop = any_rank(self.accelerator, stop_requested())
                if last or (settings.evaluate_every and step % settings.evaluate_every == 0):
                    metrics |= self._evaluate(step)
                log.log(step, metrics)
                self.plugins.observe("lmrl_step_end", run=log, step=step, metrics=metrics)
                done = step
                every = self.config.checkpoint.every
                if last or stop or (every and step % every == 0):
                    self._save(step)
                held_out = f", held out {metrics['evaluation/loss']:.3f}" if "evaluation/loss" in metrics else ""
                speed = metrics["time/tokens_per_second"]
                bar.set_postfix_str(f"loss {metrics['train/loss']:.3f}{held_out}, {speed:.0f} tokens/s", refresh=False)
                bar.update()
                if stop and not last:
                    interrupted = True
                    break
        self.accelerator.wait_for_everyone()
        if log.is_main:
            panels = tuple(replace(panel, label=panel.label.format(unit=self.task.unit)) for panel in PANELS)
            plot_run(log.folder, panels, UNIT, "training batch", "held out")
        evaluations = _evaluations(log.folder)
        return FitResult(
            folder=log.folder,
            checkpoint=list_checkpoints(log.folder)[-1],
            steps=done,
            first_evaluation=evaluations[0] if evaluations else {},
            evaluation=evaluations[-1] if evaluations else {},
            interrupted=interrupted,
        )

    def _step(self, step: int) -> dict[str, float]:
        """Take one gradient step; return its numbers."""
        settings, accelerator, task = self.settings, self.accelerator, self.task
        began = time.perf_counter()
        factor = schedule_factor(
            step - 1, settings.steps, settings.warmup_steps, settings.schedule, settings.final_share
        )
        for group in self.prepared.param_groups:
            group["lr"] = settings.learning_rate * factor
        rank, ranks = accelerator.process_index, accelerator.num_processes
        # Dropout, where a stage wants it, draws from this: a resumed step draws the same.
        torch.manual_seed(derive_seed(self.config.run.seed, "step", step, rank))
        parts = task.microbatches(step, rank, ranks)
        here = torch.tensor(
            [float(sum(map(task.count, parts))), float(sum(map(task.tokens, parts)))],
            dtype=torch.float64 if accelerator.device.type != "mps" else torch.float32,
            device=accelerator.device,
        )
        count, tokens = accelerator.reduce(here, reduction="sum").tolist()
        self.module.train()
        self.prepared.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            with gradient_sync(self.accelerator, self.module, index == len(parts) - 1), accelerator.autocast():
                total, metrics = task.loss(self.module, part)
            # Data-parallel wrappers average gradients over ranks; the count is global, so undo the division.
            with gradient_sync(self.accelerator, self.module, index == len(parts) - 1):
                accelerator.backward(total * (ranks / max(count, 1)))
            for name, value in {"loss": total, **metrics}.items():
                sums[name] = sums.get(name, torch.zeros((), device=total.device)) + value.detach().float()
        norm = accelerator.clip_grad_norm_(
            [p for group in self.prepared.param_groups for p in group["params"]],
            settings.max_gradient_norm or float("inf"),
        )
        names = sorted(sums)
        values = accelerator.reduce(torch.stack([sums[name] for name in names]), reduction="sum")
        *means, norm_value = torch.cat([values / max(count, 1), norm.detach().to(values).reshape(1)]).tolist()
        numbers = {f"train/{name}": value for name, value in zip(names, means, strict=True)}
        require_finite("the loss", numbers["train/loss"], f"step {step}")
        require_finite("the gradient's norm", norm_value, f"step {step}")
        self.prepared.step()
        seconds = time.perf_counter() - began
        speed = tokens / seconds
        return numbers | {
            "train/gradient_norm": norm_value,
            "train/learning_rate": settings.learning_rate * factor,
            f"train/{task.unit}s": count,
            "time/step_seconds": seconds,
            "time/tokens_per_second": speed,
            **{f"time/{name}": value for name, value in task.speed(speed).items()},
        }

    def _evaluate(self, step: int) -> dict[str, float]:
        self.module.eval()
        with torch.no_grad(), self.accelerator.autocast():
            torch.manual_seed(derive_seed(self.config.run.seed, "evaluation"))
            numbers = self.task.evaluate(self.module)
            texts = self.task.texts() if self.log.is_main else []
        self.log.log_texts(step, "samples", texts)
        return {f"evaluation/{name}": value for name, value in numbers.items()}

    def _save(self, step: int) -> None:
        def state() -> dict[str, Any]:
            return {
                "step": step,
                "steps": self.settings.steps,
                "torch_optimizer": self.prepared.state_dict(),
                "data": self.fingerprint,
            }

        save_run(self.log, self.accelerator, self.plugins, step, self.task.module, self.task.save, state)

    def _newest(self) -> tuple[Path | None, dict[str, Any] | None]:
        """Return the checkpoint to go on from and its state, or nothing if the run was killed before the first."""
        folder = Path(self.config.run.folder)
        made_by = stage_of(folder)
        if made_by and made_by != self.stage:
            raise ResumeError(
                f"{folder} is a run of `lmrl {made_by}`; continue it with `lmrl {made_by} --resume {folder}`"
            )
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            return None, None
        state = load_state(checkpoints[-1])
        if state["data"] != self.fingerprint:
            raise ResumeError(
                f"the data have changed since {checkpoints[-1].name} was written, so the run would not be the same; "
                f"bring back the old data, or start a new run from {checkpoints[-1]}"
            )
        return checkpoints[-1], state

    def _note_length(self, done: int, planned: int) -> None:
        """Log what another number of steps changes in a resumed run, or that nothing is left to do."""
        settings = self.settings
        extended = extension_note(done, planned, settings.steps, settings, UNIT, settings.final_share)
        for note in (extended, finished_note(done, settings.steps, UNIT)):
            if note:
                logger.warning(note)

    def _open_run(self, start: int | None, resume: bool) -> Run:
        folder = self.config.run.folder or str(free_folder(self.stage))
        config = replace(self.config, run=replace(self.config.run, folder=folder))
        last = None if not resume else (-1 if start is None else start)
        return open_run(config, self.plugins, self.accelerator.is_main_process, self.stage, UNIT, last)


def _evaluations(folder: Path) -> list[dict[str, float]]:
    """Return what each evaluation found, without the prefix, in the order of the steps."""
    found = []
    for record in read_metrics(folder):
        numbers = {name.removeprefix("evaluation/"): v for name, v in record.items() if name.startswith("evaluation/")}
        if numbers:
            found.append(numbers)
    return found
