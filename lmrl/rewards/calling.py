"""How a reward is called: which columns it takes, and how several asynchronous ones run at once."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from lmrl.errors import RewardError, SettingsError, nearest

_background_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""One event loop per process (by process id, because a fork copies the table but not the thread that runs it)."""


def check_signature(name: str, function: Callable[..., Any]) -> None:
    """Refuse a callable that cannot take prompts and responses."""
    signature = signature_of(function)
    if signature is None:
        return
    try:
        signature.bind_partial([], [])
    except TypeError as error:
        raise SettingsError(
            f"reward {name!r} takes {signature}, which has no room for two positional arguments; expected "
            "(prompts, responses, **columns) -> scores. Wrap a function of one row in lmrl.rewards.per_row."
        ) from error


def accepted_columns(name: str, function: Callable[..., Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that the callable takes by name: all with ``**kwargs``, otherwise its own parameters.

    Raises ``RewardError`` when a parameter without a default has no column.
    """
    signature = signature_of(function)
    if signature is None:
        return {}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(signature.parameters.values())
    taken = [parameter.name for parameter in parameters if parameter.kind in positional][:2]
    named = {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and parameter.name not in taken
    }
    for parameter in named.values():
        if parameter.default is inspect.Parameter.empty and parameter.name not in columns:
            guess = nearest(parameter.name, columns)
            raise RewardError(
                f"reward {name!r} needs the column {parameter.name!r}, but the rows have "
                f"{', '.join(sorted(columns)) or 'none besides the prompt'}"
                + (f"; did you mean {guess!r}?" if guess else ". Add the column to the data, or give it a default.")
            )
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return {key: value for key, value in columns.items() if key not in taken}
    return {key: value for key, value in columns.items() if key in named}


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the callable's signature, or None for one that has none (some functions written in C)."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def run_together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make all calls and return, in order, each one's result or the exception it raised.

    A call that returns an awaitable is awaited together with the others, on an event loop of our own in a thread of
    its own: this works in scripts and where a loop already runs (notebooks), and a client that an asynchronous reward
    keeps open sees the same loop each time. Only ``Exception`` is caught.
    """
    results: list[Any] = []
    waiting: dict[int, Awaitable[Any]] = {}
    try:
        for index, call in enumerate(calls):
            try:
                result = call()
            except Exception as error:
                result = error
            if inspect.isawaitable(result):
                waiting[index] = result
            results.append(result)
    except BaseException:  # Ctrl-C: leave no coroutine behind that was never awaited
        for awaitable in waiting.values():
            if inspect.iscoroutine(awaitable):
                awaitable.close()
        raise
    if waiting:
        for index, result in zip(waiting, _wait(_gather(list(waiting.values()))), strict=True):
            results[index] = result
    return results


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
