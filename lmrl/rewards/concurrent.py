"""Calling a reward with a few rows at a time, in threads or processes, while the other rows are still sampled.

Only for rewards whose scores each depend on their own row. Leaves out: deciding which rows are complete
(``lmrl.stages.rl.early_scores``), and starting the sampling.
"""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmrl.errors import RewardError, SettingsError
from lmrl.rewards.result import RewardResult

Reward = Callable[[Sequence[str], Sequence[str], Mapping[str, Sequence[Any]]], RewardResult]

_installed: list[Reward] = []
"""In a process of the pool: the reward that it calls."""


class ConcurrentReward:
    """A reward and the pool that calls it, which starts at the first call and is kept from batch to batch.

    Raises ``SettingsError`` for ``kind="process"`` and a reward that does not pickle.
    """

    def __init__(self, reward: Reward, kind: Literal["thread", "process"], workers: int) -> None:
        self.reward, self.kind, self.workers = reward, kind, workers
        self._pool: Executor | None = None
        self._pickled = b""
        if kind == "process":
            try:
                self._pickled = pickle.dumps(reward)
            except Exception as error:
                raise SettingsError(
                    f"{reward!r} cannot be sent to a process ({type(error).__name__}: {error}); use a function or "
                    "class of a module, or threads"
                ) from error

    def batch(self) -> PendingScores:
        """Return a new batch without rows."""
        return PendingScores(self)

    def submit(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> Future[RewardResult]:
        """Have some rows scored; returns at once."""
        if self._pool is None:
            if self.kind == "thread":
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="lmrl-reward")
            else:
                context = get_context("spawn")  # a fork would copy torch's threads as they stand
                self._pool = ProcessPoolExecutor(self.workers, context, _install, (self._pickled,))
        if self.kind == "thread":
            return self._pool.submit(self.reward, prompts, responses, columns)
        try:
            return self._pool.submit(_call_installed, prompts, responses, columns)
        except BrokenProcessPool as error:
            raise self.died() from error

    def died(self) -> RewardError:
        """Forget the broken pool, and return the error to raise."""
        self.close()
        return RewardError(
            f"a process that calls {self.reward!r} ended before it had answered; what it wrote stands above. A script "
            'is imported by these processes, so its work must stand under `if __name__ == "__main__":`. '
            'scoring.concurrency = "none" calls the reward in this process.'
        )

    def close(self) -> None:
        """End the pool, without the calls that have not begun; the next call starts it anew."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


class PendingScores:
    """The scores of one batch, of which rows are submitted in any order and number, each once."""

    def __init__(self, concurrent: ConcurrentReward) -> None:
        self.rows: set[int] = set()
        self._concurrent = concurrent
        self._calls: list[tuple[list[int], Future[RewardResult]]] = []

    def submit(
        self,
        rows: Sequence[int],
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        """Have rows scored, of which the workers take equal shares; the other arguments hold one value per row."""
        size = max(1, -(-len(rows) // self._concurrent.workers))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            taken = {name: column[part] for name, column in columns.items()}
            future = self._concurrent.submit(list(prompts[part]), list(responses[part]), taken)
            self._calls.append((list(rows[part]), future))
        self.rows.update(rows)

    def result(self, rows: Sequence[int]) -> RewardResult:
        """Wait for all that was submitted, and return the scores and parts of these rows, in this order.

        Raises the first error in the order of rows, with the rows that were scored together.
        """
        scores: dict[int, float] = {}
        scored: dict[int, bool] = {}
        parts: dict[str, dict[int, float]] = {}
        tokens: dict[int, NDArray[np.float64]] = {}
        for place, (called, future) in enumerate(sorted(self._calls, key=lambda call: min(call[0]))):
            found = self._result(called, future)
            scores |= zip(called, found.scores, strict=True)
            scored |= zip(called, found.scored, strict=True)
            tokens |= {called[row]: numbers for row, numbers in found.tokens.items()}
            if place and parts.keys() != found.parts.keys():
                raise RewardError(
                    f"rows {_listed(called)} were given the parts {_listed(found.parts)}, others {_listed(parts)}; a "
                    "reward that is called while others are sampled must return the same parts for every row"
                )
            for name, values in found.parts.items():
                parts.setdefault(name, {}).update(zip(called, values, strict=True))
        return RewardResult(
            np.array([scores[row] for row in rows], dtype=np.float64),
            {name: np.array([values[row] for row in rows], dtype=np.float64) for name, values in parts.items()},
            np.array([scored[row] for row in rows], dtype=np.bool_),
            {place: tokens[row] for place, row in enumerate(rows) if row in tokens},
        )

    def cancel(self) -> None:
        """Give up the calls that have not begun."""
        for _, future in self._calls:
            future.cancel()

    def _result(self, rows: list[int], future: Future[RewardResult]) -> RewardResult:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise self._concurrent.died() from error
        except RewardError as error:
            where = f"row {rows[0]}" if len(rows) == 1 else f"rows {_listed(rows)}, here counted from 0"
            raise type(error)(f"{where}: {error}") from error


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "(none)"


def _install(pickled: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    _installed.append(pickle.loads(pickled))


def _call_installed(prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]) -> RewardResult:
    return _installed[0](prompts, responses, columns)
