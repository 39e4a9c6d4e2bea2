"""The RL stage: maximise E[score] - beta KL(policy || reference) with any registered policy optimizer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmrl.algorithms.rollout import Scored
from lmrl.errors import JudgeError, NonFiniteError, RewardError
from lmrl.seeds import derive_seed
from lmrl.stages.rl.config import RLConfig
from lmrl.stages.rl.evaluation import Evaluation, evaluate_policy
from lmrl.stages.rl.resampling import resample
from lmrl.stages.rl.session import Session
from lmrl.stages.rl.setup import open_session
from lmrl.training.devices import any_rank
from lmrl.training.first_update import check_data, check_samples
from lmrl.training.run import require_finite
from lmrl.training.stopping import stop_requests

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RLResult:
    """Result of a run: its folder, the evaluations before and after, and ``interrupted``."""

    folder: Path
    updates: int
    before: Evaluation | None
    after: Evaluation | None
    interrupted: bool


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
    session = open_session(config, reward=reward, prompts=prompts, data=data, plugins=plugins, resume=resume)
    error: BaseException | None = None
    try:
        session.plugins.observe("lmrl_run_start", run=session.run)
        return _train(session, progress)
    except BaseException as caught:
        error = caught
        raise
    finally:
        with ExitStack() as ends:  # called from the last to the first, each of them also when another one raises
            ends.callback(session.run.close)
            ends.callback(session.plugins.observe, "lmrl_run_end", run=session.run, error=error)
            ends.callback(session.maker.close)


def _train(session: Session, progress: bool) -> RLResult:
    config, run = session.config, session.run
    first = session.start_update
    before: Evaluation | None = None
    after: Evaluation | None = None
    if first == 0:
        with _saved_first(session, 0):
            before = _evaluate(session, 0)
        run.log(0, before.metrics() if before else {})
    done = first
    bar = tqdm(
        total=config.train.updates,
        initial=first,
        desc=config.optimizer.name,
        unit="update",
        disable=not (progress and run.is_main),
    )
    with bar, stop_requests("update") as stop_requested:
        for update in range(first + 1, config.train.updates + 1):
            with _saved_first(session, done):
                metrics = _update(session, update)
            last = update == config.train.updates
            stop = any_rank(session.accelerator, stop_requested())
            if _due(update, config.evaluation.every) or last:
                with _saved_first(session, update, metrics):
                    after = _evaluate(session, update)
                if after:
                    metrics |= after.metrics()
            run.log(update, metrics)
            session.plugins.observe("lmrl_step_end", run=run, step=update, metrics=metrics)
            done = update
            if _due(update, config.checkpoint.every) or last or stop:
                session.save(update)
            bar.set_postfix_str(_postfix(metrics))
            bar.update()
            if stop:
                break
    return RLResult(run.folder, done, before, after, interrupted=done < config.train.updates)


def _update(session: Session, update: int) -> dict[str, float]:
    """Sample, score, shape and learn once; return the metrics."""
    config, maker, seed = session.config, session.maker, session.config.run.seed
    run, accelerator = session.run, session.accelerator
    run.update = update
    if session.offline is not None:
        return _update_offline(session, update)
    start = time.perf_counter()
    with accelerator.autocast():
        with _errors_named(f"update {update}"):
            maker.publish(update - 1)
            scored, sampling = _sample(session, update)
        sampled = time.perf_counter()
        reference_logprobs = maker.reference_logprobs(scored.samples)
        if update == 1 and session.starts_as_reference:
            samples = scored.samples
            frozen = maker.reference_as_sampler(samples, reference_logprobs)
            mask, model = samples.action_mask, maker.policy.model
            exact = maker.engine.capabilities.exact
            check_samples(samples.sampler_logprobs, frozen, mask, accelerator, model, exact)
        beta = session.controller.beta
        rollout = maker.complete(scored, reference_logprobs, beta)
    session.plugins.observe("lmrl_rollout", run=run, rollout=rollout)
    ready = time.perf_counter()
    kl_rows = (rollout.proximal_logprobs - reference_logprobs).sum(1)
    means = session.rollout_means(scored, kl_rows)
    if "rollout/reward" in means:
        require_finite("the reward", means["rollout/reward"], f"update {update}")
    else:
        logger.warning("update %d: no response has a score, so there is nothing to learn from", update)
    require_finite("the KL to the reference", means["rollout/kl"], f"update {update}")
    means |= session.updater.update(rollout, beta, update, derive_seed(seed, "minibatches", update))
    session.after_update(update)
    end = time.perf_counter()
    session.controller.adapt(means["rollout/kl"], config.train.prompts_per_update * config.train.group_size)
    tokens = means["rollout/tokens"]
    if "rollout/reward" in means:
        means["rollout/objective"] = means["rollout/reward"] - beta * means["rollout/kl"]
    if bool(scored.scored.any()):
        run.log_histogram(update, "rollout/rewards", scored.scores[scored.scored].cpu().numpy())
    run.log_histogram(update, "rollout/lengths", scored.samples.inputs.action_counts.cpu().numpy())
    return (
        means
        | sampling
        | {
            "rollout/beta": beta,
            "time/sample_seconds": sampled - start,
            "time/score_seconds": ready - sampled,
            "time/update_seconds": end - ready,
            "time/tokens_per_second": tokens / (end - start),
        }
    )


def _sample(session: Session, update: int) -> tuple[Scored, dict[str, float]]:
    """Sample this update's prompts, and others for groups from which the optimizer can learn nothing."""
    seed, maker = session.config.run.seed, session.maker
    prompts = session.training_batch(update)
    scored = maker.sample(prompts, derive_seed(seed, "sample", update), maker.needs.greedy_scores)
    optimizer = session.updater.optimizer
    if not optimizer.defines("informative"):
        return scored, {}
    scored, _, lacking = resample(
        maker,
        optimizer,
        scored,
        prompts,
        lambda number, groups: session.further_batch(update, number, groups),
        lambda number: derive_seed(seed, "resample", update, number),
        session.config.train.resamples,
        session.accelerator,
    )
    return scored, {"rollout/uninformative_groups": float(lacking)}


def _update_offline(session: Session, update: int) -> dict[str, float]:
    """Learn once from data that were there before."""
    start = time.perf_counter()
    with session.accelerator.autocast():
        batch = session.offline_batch(update)
    if update == 1 and session.starts_as_reference:
        check_data(batch, session.updater.policy, session.accelerator, session.maker.policy.model)
    loaded = time.perf_counter()
    seed = derive_seed(session.config.run.seed, "minibatches", update)
    means = session.updater.learn(batch, 0.0, update, seed)
    end = time.perf_counter()
    tokens = float(batch.row_lengths.sum()) * session.accelerator.num_processes
    return means | {
        "time/score_seconds": loaded - start,
        "time/update_seconds": end - loaded,
        "time/tokens_per_second": tokens / (end - start),
    }


def _evaluate(session: Session, update: int) -> Evaluation | None:
    """Evaluate on the held-out prompts, always with the same seed, and store sample texts."""
    batch = session.evaluation_batch
    if batch is None:
        return None
    settings = session.config.evaluation
    session.maker.publish(update)
    with session.accelerator.autocast(), _errors_named(f"evaluation after update {update}"):
        result = evaluate_policy(
            session.maker, batch, derive_seed(session.config.run.seed, "evaluation"), settings.show
        )
    session.run.log_texts(update, "evaluation", result.texts)
    return result


def _postfix(metrics: dict[str, float]) -> str:
    if "rollout/kl" in metrics:
        reward = f"reward {metrics['rollout/reward']:.3f}" if "rollout/reward" in metrics else "no scores"
        learned = f"{reward}, KL {round(metrics['rollout/kl'], 2) + 0.0:.2f}"
    else:
        learned = f"loss {metrics['optimizer/loss']:.3f}"
    return f"{learned}, {metrics['time/tokens_per_second']:.0f} tokens/s"


def _due(update: int, every: int) -> bool:
    return every > 0 and update % every == 0


@contextmanager
def _saved_first(session: Session, update: int, metrics: Mapping[str, float] | None = None) -> Iterator[None]:
    """Save the state after ``update`` when a judge cannot go on, so that a resumed run repeats nothing.

    ``metrics`` are those of an update that is not logged yet.
    """
    try:
        yield
    except JudgeError as error:
        if session.accelerator.num_processes > 1:  # saving waits for the other ranks, which have not failed
            raise
        if metrics is not None:
            session.run.log(update, metrics)
        if update > 0:
            session.save(update)
        where = f"{session.run.folder} holds the state after update {update}"
        nothing = f"{session.run.folder} holds no update yet"
        raise type(error)(
            f"{error} {where if update > 0 else nothing}; continue with lmrl rl --resume {session.run.folder}"
        ) from error


@contextmanager
def _errors_named(where: str) -> Iterator[None]:
    """Put where it happened in front of what the reward or the engine raises: neither knows the update."""
    try:
        yield
    except (RewardError, NonFiniteError) as error:
        raise type(error)(f"{where}: {error}") from error
