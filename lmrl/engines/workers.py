"""Sampling in several processes of one thread each, which share the rows of a batch and the weights in memory.

On a CPU, two processes sample more than one process with two threads: the operations of a decode step are small, and
threads wait for one another in each. Every row gets the random numbers that it would get in one process. Leaves out:
models that are not one module, and GPUs.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from multiprocessing import Pipe, current_process
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lmrl.algorithms.rollout import Samples
from lmrl.algorithms.rows import join_records
from lmrl.engines.engine import OnFinished
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.engines.spec import SamplingSpec
from lmrl.engines.transformers_engine import TransformersEngine
from lmrl.engines.worker import Request, Start
from lmrl.errors import ModelError, SettingsError, WorkerError
from lmrl.text.card import TextCodec

logger = logging.getLogger(__name__)

COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from lmrl.engines.worker import main; main(int(sys.argv[1]))"
IMBALANCE = 1 / 16
"""Samples of one prompt are parted where the shares would otherwise differ by more than this part of one."""


class ParallelEngine(TransformersEngine):
    """The default decode engine over ``settings.workers`` processes, which start at the first call and are kept.

    They end with the engine, with this process, and when a call breaks off, by Ctrl-C say; the next one starts others.
    """

    def __init__(self, settings: TransformersEngineSettings) -> None:
        super().__init__(settings)
        self._workers: list[_Worker] = []
        self._model = _SharedModel()
        self._warned = False
        self._finalizer = weakref.finalize(self, _close, self._workers, os.getpid())

    def sample_rows(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        spec: SamplingSpec,
        uniforms: Tensor,
        codec: TextCodec | None = None,
        on_finished: OnFinished | None = None,
    ) -> Samples:
        """Sample in the processes; see ``TransformersEngine.sample_rows``.

        Raises ``SettingsError`` for a model on a GPU, ``WorkerError`` when a process dies or raises what is not one of
        ``lmrl.errors``.
        """
        if model.device.type != "cpu":
            raise SettingsError(
                f"engine.transformers.workers is {self.settings.workers}, but the model is on {model.device}, which "
                "the processes would only have to share; set engine.transformers.workers=1"
            )
        if not isinstance(model, nn.Module):
            if not self._warned:
                logger.warning(
                    "engine.transformers.workers is %d, but %s is more than one module and cannot be shared; it is "
                    "sampled in this process",
                    self.settings.workers,
                    type(model).__name__,
                )
            self._warned = True
            return super().sample_rows(model, prompts, spec, uniforms, codec, on_finished)
        busy: dict[Any, tuple[_Worker, list[int]]] = {}
        try:
            return self._sample(model, prompts, spec, uniforms, codec, on_finished, busy)
        except BaseException:
            if busy:  # a dead one, or others that sample what nobody waits for any more
                self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        _close(self._workers, os.getpid())

    def _sample(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        spec: SamplingSpec,
        uniforms: Tensor,
        codec: TextCodec | None,
        on_finished: OnFinished | None,
        busy: dict[Any, tuple[_Worker, list[int]]],
    ) -> Samples:
        """Sample, and keep in ``busy``, by their connections, the processes that have not answered, with their rows."""
        count = self.settings.workers
        while len(self._workers) < count:
            rows = ceil(self.settings.rows / count)
            self._workers.append(_Worker(replace(self.settings, workers=1, rows=rows)))
        self._model.hold(model)
        numbers = uniforms.cpu().numpy()
        for worker, share in zip(self._workers, share_rows(prompts, count, spec.max_new_tokens), strict=True):
            if share:
                request = Request(
                    prompts=[list(prompts[row]) for row in share],
                    spec=spec,
                    uniforms=numbers[share],
                    model=worker.pickled_model(model, self._model.version),
                    codec=worker.pickled_codec(codec if spec.stop_strings else None),
                    reports=on_finished is not None,
                    autocast=torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
                )
                busy[worker.connection] = (worker, share)
                worker.send(request)
        order: list[int] = []
        parts: list[Samples] = []
        while busy:
            for connection in wait(list(busy)):
                worker, share = busy[connection]
                kind, *content = worker.receive()
                if kind == "finished" and on_finished is not None:
                    on_finished([share[row] for row in content[0]], content[1])
                elif kind == "done":
                    parts.append(content[0])
                    order += share
                    del busy[connection]
                elif kind == "failed":
                    del busy[connection]
                    worker.raise_failure(*content)
        return _in_order(parts, order, prompts)


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, settings: TransformersEngineSettings) -> None:
        if sys.platform == "win32":
            raise SettingsError("engine.transformers.workers needs a system with POSIX pipes; set it to 1")
        self.connection, theirs = Pipe()
        # A fresh interpreter and not multiprocessing's spawn, which would run the user's script once more in it. In a
        # session of its own, a Ctrl-C in the terminal reaches the parent alone.
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(theirs.fileno()), *sys.path],
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,
        )
        theirs.close()
        self._version = 0
        self._codec: TextCodec | None = None
        self.send(Start(settings, bytes(current_process().authkey)))

    def pickled_model(self, model: nn.Module, version: int) -> bytes | None:
        """Return the model, its tensors by reference, if this process has another one or none."""
        if version == self._version:
            return None
        try:
            pickled = bytes(ForkingPickler.dumps(model))
        except Exception as error:
            raise ModelError(
                f"the model cannot be sent to a sampling process ({type(error).__name__}: {error}); set "
                "engine.transformers.workers=1"
            ) from error
        self._version = version
        return pickled

    def pickled_codec(self, codec: TextCodec | None) -> bytes | None:
        """Return the codec if it is needed and this process has another one or none."""
        if codec is None or codec is self._codec:
            return None
        self._codec = codec
        return pickle.dumps(codec)

    def send(self, message: Start | Request) -> None:
        """Send a message; raises ``WorkerError`` if the process is no more."""
        try:
            self.connection.send(message)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> tuple[Any, ...]:
        """Return the next answer; raises ``WorkerError`` if the process is no more."""
        try:
            answer: tuple[Any, ...] = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        return answer

    def raise_failure(self, known: Exception | None, text: str) -> NoReturn:
        """Raise what the process raised, with its traceback; it goes on, but may lack the model."""
        self._version, self._codec = 0, None
        cause = WorkerError(f"a sampling process raised an error:\n{text}")
        if known is None:
            raise cause
        raise known from cause

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    def _death(self) -> WorkerError:
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return WorkerError(f"the sampling process {self.process.pid} has closed its pipe and does not answer")
        how = f"by the signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = "; SIGKILL is often the system's answer to too little memory" if code == -signal.SIGKILL else ""
        return WorkerError(
            f"the sampling process {self.process.pid} ended {how} while it was needed{hint}. What it wrote stands "
            "above; engine.transformers.workers=1 samples in this process."
        )


class _SharedModel:
    """The model whose weights lie in shared memory, where optimizers move them in place and every process sees it.

    ``version`` changes when the processes must be given the model anew: it is another one, or has other tensors.
    """

    def __init__(self) -> None:
        self.version = 0
        self._model: weakref.ref[nn.Module] | None = None
        self._tensors: list[tuple[weakref.ref[Tensor], int]] = []
        self._training = False

    def hold(self, model: nn.Module) -> None:
        """Make this the shared model; moves what is not shared yet."""
        tensors = [one for one in (*model.parameters(), *model.buffers()) if one.numel()]
        known = self._model is not None and self._model() is model and self._training == model.training
        if known and len(tensors) == len(self._tensors):
            pairs = zip(tensors, self._tensors, strict=True)
            if all(ref() is one and one.data_ptr() == at and one.is_shared() for one, (ref, at) in pairs):
                return
        _require_room([one for one in tensors if not one.is_shared()])
        for one in tensors:  # not model.share_memory(), which moves the gradients too
            one.share_memory_()
        self._model, self._training = weakref.ref(model), model.training
        self._tensors = [(weakref.ref(one), one.data_ptr()) for one in tensors]
        self.version += 1


def share_rows(prompts: Sequence[Sequence[int]], workers: int, new_tokens: int) -> list[list[int]]:
    """Return each worker's rows, so that all have as many tokens to process, as far as can be known.

    Samples of one prompt stay together, because their prompt is processed once, unless one worker would wait for that.
    """
    samples: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        samples.setdefault(tuple(prompt), []).append(row)
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers

    def cost(row: int) -> int:
        return len(prompts[row]) + new_tokens

    for rows in sorted(samples.values(), key=lambda rows: -len(rows) * cost(rows[0])):
        lightest = loads.index(min(loads))
        shares[lightest] += rows
        loads[lightest] += len(rows) * cost(rows[0])
    allowed = IMBALANCE * sum(loads) / workers
    while True:
        heaviest, lightest = loads.index(max(loads)), loads.index(min(loads))
        moved = cost(shares[heaviest][-1])
        if loads[heaviest] - loads[lightest] <= max(allowed, moved):
            return [sorted(share) for share in shares]
        shares[lightest].append(shares[heaviest].pop())
        loads[heaviest] -= moved
        loads[lightest] += moved


def _in_order(parts: Sequence[Samples], order: Sequence[int], prompts: Sequence[Sequence[int]]) -> Samples:
    """Put the rows of all parts in the order of the prompts, and number the prompts over all of them."""
    places = torch.empty(len(order), dtype=torch.long)
    places[torch.tensor(order)] = torch.arange(len(order))
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(prompt) for prompt in prompts))}
    group = torch.tensor([numbers[tuple(prompt)] for prompt in prompts])
    return replace(join_records(parts).select(places), group=group)


def _require_room(tensors: Sequence[Tensor]) -> None:
    """Refuse what shared memory cannot hold: the system ends a process that writes beyond it."""
    folder = Path("/dev/shm")
    needed = sum(one.numel() * one.element_size() for one in tensors)
    if not needed or not folder.is_dir():
        return
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if needed > free:
        raise SettingsError(
            f"engine.transformers.workers shares {needed / 2**20:.0f} MiB of weights in {folder}, which has "
            f"{free / 2**20:.0f} MiB left; give it more (docker run --shm-size), or set engine.transformers.workers=1"
        )


def _close(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:  # a fork holds copies of our handles, not our processes
        for worker in workers:
            worker.end()
    workers.clear()
