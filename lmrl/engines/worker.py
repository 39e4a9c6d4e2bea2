"""A sampling process of ``lmrl.engines.workers``: it samples, on one thread, what it is sent until its pipe closes.

Messages to it are a ``Start`` and then any number of ``Request``; it answers each request with any number of
``("finished", rows, ids)`` and one ``("done", samples)`` or ``("failed", error, traceback)``.
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

import numpy as np
from numpy.typing import NDArray

from lmrl.engines.settings import TransformersEngineSettings
from lmrl.engines.spec import SamplingSpec
from lmrl.errors import LmrlError


@dataclass(frozen=True)
class Start:
    """What a process must know before its first request; ``key`` lets it ask the parent for shared memory."""

    settings: TransformersEngineSettings
    key: bytes


@dataclass(frozen=True)
class Request:
    """Rows to sample. ``model`` and ``codec``, both pickled, are None where the last ones are meant."""

    prompts: Sequence[Sequence[int]]
    spec: SamplingSpec
    uniforms: NDArray[np.float64]
    model: bytes | None
    codec: bytes | None
    reports: bool
    """Whether complete rows are to be told of at once."""
    autocast: Any
    """The dtype in which the parent computes, or None."""


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

    from lmrl.engines.transformers_engine import TransformersEngine

    engine = TransformersEngine(settings)
    model = codec = None

    def report(rows: list[int], ids: list[list[int]]) -> None:
        connection.send(("finished", rows, ids))

    while True:
        request: Request = connection.recv()
        try:
            if request.model is not None:
                model = None  # the memory of the last one is free before the next one comes
                model = pickle.loads(request.model)
            if request.codec is not None:
                codec = pickle.loads(request.codec)
            with torch.autocast("cpu", request.autocast, enabled=request.autocast is not None):
                samples = engine.sample_rows(
                    model,
                    request.prompts,
                    request.spec,
                    torch.from_numpy(request.uniforms),
                    codec if request.spec.stop_strings else None,
                    report if request.reports else None,
                )
            answer: tuple[Any, ...] = ("done", samples)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            known = type(error)(str(error)) if isinstance(error, LmrlError) else None
            answer = ("failed", known, traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))  # not send(), which would put each tensor in shared memory


def _exit_with_parent() -> None:
    while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 1):
        pass
    os._exit(0)
