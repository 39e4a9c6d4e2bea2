"""Comparisons in a process of their own, with a time limit: safe in threads, in worker processes and after a fork."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_START = 60.0
"""Seconds for the first reply of a process, which imports sympy."""


class MathProcess:
    """A process that compares expressions; it starts at the first comparison and again after a time-out."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.Queue[str] = queue.Queue()
        self._owner = os.getpid()

    def compare(self, gold: str, given: str, seconds: float) -> dict[str, bool]:
        """Return whether ``gold`` can be read and whether both are equal; neither after ``seconds``."""
        self._start()
        try:
            return self._ask(gold, given, seconds)
        except (queue.Empty, OSError, ValueError):
            self.close()
            return {"read": False, "equal": False}

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None and self._owner == os.getpid():
            return
        self._owner = os.getpid()
        self._replies = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        threading.Thread(target=_pass_on, args=(self._process, self._replies), daemon=True).start()
        self._ask("1", "1", _START)

    def _ask(self, gold: str, given: str, seconds: float) -> dict[str, bool]:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"gold": gold, "given": given}) + "\n")
        self._process.stdin.flush()
        reply: Any = json.loads(self._replies.get(timeout=seconds))
        return {name: bool(value) for name, value in reply.items()}


def _pass_on(process: subprocess.Popen[str], replies: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        replies.put(line)
    replies.put("")  # the process ended: no JSON


_of_thread = threading.local()


def math_process() -> MathProcess:
    """Return this thread's process; a fork gets one of its own."""
    found: MathProcess | None = getattr(_of_thread, "process", None)
    if found is None:
        found = _of_thread.process = MathProcess()
    return found
