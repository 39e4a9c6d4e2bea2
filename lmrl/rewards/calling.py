"""Results of asynchronous rewards, which are awaited at the same time."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any

_background_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""One event loop per process (by process id, because a fork copies the table but not the thread that runs it)."""


def awaited(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """Return, in order, each awaitable's result or the exception it raised; all are awaited at the same time.

    They run on an event loop of our own in a thread of its own: this works in scripts and where a loop already runs
    (notebooks), and a client that an asynchronous reward keeps open sees the same loop each time.
    """
    return _wait(_gather(awaitables))


async def _gather(awaitables: list[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*awaitables, return_exceptions=True))


def _wait(work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    loop = _background_loop()
    try:
        inside = asyncio.get_running_loop() is loop
    except RuntimeError:
        inside = False
    if inside:  # an asynchronous reward that calls another reward: its loop must not wait for itself
        return _in_fresh_thread(work)
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _background_loop() -> asyncio.AbstractEventLoop:
    process = os.getpid()
    if process not in _background_loops:
        loop = asyncio.new_event_loop()
        if _background_loops.setdefault(process, loop) is loop:
            threading.Thread(target=loop.run_forever, name="lmrl-rewards", daemon=True).start()
        else:
            loop.close()
    return _background_loops[process]


def _in_fresh_thread(work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    results: list[list[Any]] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(work)), daemon=True)
    thread.start()
    thread.join()
    return results[0]
