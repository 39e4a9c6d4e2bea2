"""The RL stage: ``rl(config)`` trains a recipe to its end and writes a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.stages.rl.config import RLConfig
from lmrl.stages.rl.evaluation import Evaluation
from lmrl.stages.rl.trainer import RLTrainer


@dataclass(frozen=True)
class RLResult:
    """Result of a run."""

    folder: Path
    """Run folder."""
    updates: int
    """Number of updates so far."""
    before: Evaluation | None
    """Evaluation of the initial policy, None if no prompts are held out or the run was resumed."""
    after: Evaluation | None
    """Last evaluation, None if there was none."""
    interrupted: bool
    """True if the run stopped before its last update."""


def rl(
    config: RLConfig,
    *,
    reward: Any = None,
    prompts: Sequence[Any] | None = None,
    data: Any = None,
    plugins: Any = None,
    resume: bool = False,
    progress: bool = True,
) -> RLResult:
    """Train a policy with reinforcement learning and write a run folder.

    ``reward`` (a callable) and ``prompts`` (texts, rows, a path, a table of pandas or ``datasets``; read with the
    settings of ``[prompts.file]``) take the place of the configuration's, ``data`` (the same kinds) that of
    ``config.data.path`` for optimizers that learn from data instead of prompts; ``plugins`` is a ``PluginManager``.
    With ``resume`` the run in ``config.run.folder`` continues from its newest checkpoint, bit for bit on a CPU. Ctrl-C
    finishes the update, saves and returns; a second one stops at once.
    """
    trainer = RLTrainer.from_config(config, reward=reward, prompts=prompts, data=data, plugins=plugins, resume=resume)
    error: BaseException | None = None
    with ExitStack() as ends:  # called from the last to the first, each of them also when another one raises
        ends.callback(trainer.close)
        ends.callback(lambda: trainer.plugins.observe("lmrl_run_end", run=trainer.log, error=error))
        try:
            trainer.plugins.observe("lmrl_run_start", run=trainer.log)
            before, after = trainer.run(progress)
        except BaseException as caught:
            error = caught
            raise
    done = trainer.updates
    return RLResult(trainer.log.folder, done, before, after, interrupted=done < config.train.updates)
