"""A sampling process of ``lmrl.engines.local.workers``: samples, on one thread, what it is sent until its pipe closes.

Messages to it are a ``Start`` and then any number of ``Work``; it answers each with any number of
``("responses", list of Reply)`` and one ``("done",)`` or ``("failed", error, traceback)``.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmrl.engines.protocol import Request
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.errors import LmrlError


@dataclass(frozen=True)
class Start:
    """First message to a process; ``key`` lets it ask the parent for shared memory."""

    settings: TransformersEngineSettings
    key: bytes


@dataclass(frozen=True)
class Work:
    """Requests for one model. ``model`` and ``codec``, both pickled, are None where the last ones are meant."""

    requests: Sequence[Request]
    model: bytes | None
    codec: bytes | None
    autocast: Any
    """The dtype in which the parent computes, or None."""


Reply = tuple[int, list[int], list[float], int]
"""A response on its way back: the place of its request, sampled tokens, log-probabilities, and the finish reason."""


def main(descriptor: int) -> None:
    """Serve the pipe's other end; never returns."""
    # The parent keeps our standard input open for as long as it lives, however it ends.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    from multiprocessing import current_process
    from multiprocessing.connection import Connection

    import torch

    torch.set_num_threads(1)
    connection = Connection(descriptor)
    try:
        start: Start = connection.recv()
        current_process().authkey = start.key
        _serve(connection, start.settings)
    except (EOFError, OSError):  # the parent has closed the pipe, or is gone
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _serve(connection: Any, settings: TransformersEngineSettings) -> None:
    import torch

    from lmrl.engines.batch import RequestQueue
    from lmrl.engines.local.engine import TransformersEngine
    from lmrl.engines.weights import LiveWeights

    engine = TransformersEngine(settings)
    model = codec = None
    while True:
        work: Work = connection.recv()
        try:
            if work.model is not None:
                engine.forget()  # the memory of the last one is free before the next one comes
                model = None
                model = pickle.loads(work.model)
            if work.codec is not None:
                codec = pickle.loads(work.codec)
            engine.publish(LiveWeights(model, codec), 0, work.requests[0].model)
            with torch.autocast("cpu", work.autocast, enabled=work.autocast is not None):
                for responses in engine.batches(RequestQueue(work.requests, closed=True)):
                    replies: list[Reply] = [
                        (one.request.id, one.ids, one.logprobs, int(one.finish)) for one in responses
                    ]
                    connection.send(("responses", replies))
            answer: tuple[Any, ...] = ("done",)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            known = type(error)(str(error)) if isinstance(error, LmrlError) else None
            answer = ("failed", known, traceback.format_exc())
        connection.send(answer)


def _exit_with_parent() -> None:
    while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 1):
        pass
    os._exit(0)
