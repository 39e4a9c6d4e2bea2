"""Requests that wait for an engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Condition

from lmrl.engines.protocol import Request


class RequestQueue:
    """A ``RequestSource``: first in, first out. ``closed=True`` says that no request follows those given.

    >>> queue = RequestQueue([], closed=True)
    >>> queue.take(), queue.closed
    ([], True)
    """

    def __init__(self, requests: Iterable[Request] = (), closed: bool = False) -> None:
        self._waiting = deque(requests)
        self._complete = closed
        self._changed = Condition()

    def add(self, requests: Iterable[Request]) -> None:
        """Append requests. Raises ``ValueError`` after ``close``."""
        with self._changed:
            if self._complete:
                raise ValueError("the source of requests is closed; expected requests before close()")
            self._waiting.extend(requests)
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no request follows those that wait."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """True when no request is left and none will come."""
        with self._changed:
            return self._complete and not self._waiting

    def take(self, count: int | None = None) -> list[Request]:
        """Return the next requests, at most ``count``, or all that wait. Never blocks."""
        with self._changed:
            size = len(self._waiting) if count is None else min(count, len(self._waiting))
            return [self._waiting.popleft() for _ in range(size)]

    def wait(self) -> None:
        """Block until a request waits or the source is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._complete)
