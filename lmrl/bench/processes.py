"""Runs one after the other, or side by side in processes of their own with one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lmrl.errors import LmrlError
from lmrl.plugins import PluginManager

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_all(
    function: Callable[[Item, PluginManager], Result], items: Sequence[Item], jobs: int, plugins: PluginManager
) -> Iterator[Result]:
    """Yield ``function(item, plugins)`` of every item as it ends: in order for one job, else as they come.

    Other processes are spawned, load the same plugins (files, too) and use one thread each. Leaving the loop early
    gives up what has not begun. Raises ``LmrlError`` when a process is killed from outside.
    """
    if jobs <= 1:
        for item in items:
            yield function(item, plugins)
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    with ProcessPoolExecutor(
        min(jobs, max(1, len(items))), mp_context=get_context("spawn"), initializer=_begin, initargs=(plugins.files,)
    ) as pool:
        futures = [pool.submit(_call, function, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise LmrlError(
                "a process was killed from outside (out of memory?); what had ended is kept: repeat the command to go "
                "on, perhaps with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_plugins: PluginManager | None = None
"""The manager of a spawned process."""


def _begin(files: tuple[Path, ...]) -> None:
    global _plugins
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that collects
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _plugins = PluginManager(files)


def _end_with_parent() -> None:
    """Wait for the process that collects, and end with it: killed, it would leave workers that nobody can reach."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Callable[[Any, PluginManager], Result], item: Any) -> Result:
    assert _plugins is not None
    return function(item, _plugins)
