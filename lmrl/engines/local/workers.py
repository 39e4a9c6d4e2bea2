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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from multiprocessing import Pipe, current_process
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lmrl.engines.local.engine import Published, TransformersEngine
from lmrl.engines.local.worker import Reply, Start, Work
from lmrl.engines.protocol import FinishReason, Request, RequestSource, Response
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.errors import ModelError, SettingsError, WorkerError
from lmrl.text.card import TextCodec

logger = logging.getLogger(__name__)

COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from lmrl.engines.local.worker import main; main(int(sys.argv[1]))"
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

    def _sample(
        self,
        module: Any,
        published: Published,
        requests: list[Request],
        source: RequestSource,
        backlog: list[Request],
    ) -> Iterator[list[Response]]:
        """Sample in the processes; what comes meanwhile is put on ``backlog``.

        Raises ``SettingsError`` for a model on a GPU, ``WorkerError`` when a process dies or raises what is not one of
        ``lmrl.errors``.
        """
        if module.device.type != "cpu":
            raise SettingsError(
                f"engine.transformers.workers is {self.settings.workers}, but the model is on {module.device}, which "
                "the processes would only have to share; set engine.transformers.workers=1"
            )
        if not isinstance(module, nn.Module):
            if not self._warned:
                logger.warning(
                    "engine.transformers.workers is %d, but %s is more than one module and cannot be shared; it is "
                    "sampled in this process",
                    self.settings.workers,
                    type(module).__name__,
                )
            self._warned = True
            yield from super()._sample(module, published, requests, source, backlog)
            return
        busy: dict[Any, _Worker] = {}
        try:
            self._begin(module, published, requests, busy)
            while busy:
                for responses in self._received(busy):
                    yield [
                        Response(requests[place], ids, logprobs, FinishReason(finish), [published.version] * len(ids))
                        for place, ids, logprobs, finish in responses
                    ]
                    backlog += self._checked(source.take())
        except BaseException:
            if busy:  # a dead one, or others that sample what nobody waits for any more
                self.close()
            raise

    def close(self) -> None:
        """End the processes, and drop copies of weights."""
        super().close()
        _close(self._workers, os.getpid())

    def _begin(
        self, module: nn.Module, published: Published, requests: list[Request], busy: dict[Any, _Worker]
    ) -> None:
        """Give every process its share; put those that work, by their connections, in ``busy``."""
        count = self.settings.workers
        while len(self._workers) < count:
            rows = ceil(self.settings.rows / count)
            self._workers.append(_Worker(replace(self.settings, workers=1, rows=rows)))
        self._model.hold(module)
        stops = any(request.spec.stop_strings for request in requests)
        placed = [replace(request, id=place) for place, request in enumerate(requests)]
        for worker, share in zip(self._workers, share_requests(placed, count), strict=True):
            if share:
                work = Work(
                    requests=share,
                    model=worker.pickled_model(module, self._model.version),
                    codec=worker.pickled_codec(published.weights.codec if stops else None),
                    autocast=torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
                )
                busy[worker.connection] = worker
                worker.send(work)

    def _received(self, busy: dict[Any, _Worker]) -> Iterator[list[Reply]]:
        """Yield what processes have sent, once something came; take those that are done out of ``busy``."""
        for connection in wait(list(busy)):
            worker = busy[connection]
            kind, *content = worker.receive()
            if kind == "responses":
                yield content[0]
                continue
            del busy[connection]
            if kind == "failed":
                worker.raise_failure(*content)


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

    def send(self, message: Start | Work) -> None:
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


def share_requests(requests: Sequence[Request], workers: int) -> list[list[Request]]:
    """Return each worker's requests, so that all have as many tokens to process, as far as can be known.

    Samples of one prompt stay together, because their prompt is processed once, unless one worker would wait for that.
    """
    samples: dict[tuple[int, ...], list[int]] = {}
    for place, request in enumerate(requests):
        samples.setdefault(tuple(request.ids), []).append(place)
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers

    def cost(place: int) -> int:
        return len(requests[place].ids) + requests[place].spec.max_new_tokens

    for places in sorted(samples.values(), key=lambda places: -sum(map(cost, places))):
        lightest = loads.index(min(loads))
        shares[lightest] += places
        loads[lightest] += sum(map(cost, places))
    allowed = IMBALANCE * sum(loads) / workers
    while True:
        heaviest, lightest = loads.index(max(loads)), loads.index(min(loads))
        moved = cost(shares[heaviest][-1])
        if loads[heaviest] - loads[lightest] <= max(allowed, moved):
            return [[requests[place] for place in sorted(share)] for share in shares]
        shares[lightest].append(shares[heaviest].pop())
        loads[heaviest] -= moved
        loads[lightest] += moved


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
