"""Circumstances of a result: the commit, the versions, and the machine without its name or any path."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from lmrl.training.run import library_versions

PACKAGE = Path(__file__).parents[1]


@cache
def circumstances() -> dict[str, Any]:
    """Return ``commit``, ``versions`` and ``machine`` of this process."""
    return {"commit": commit(), "versions": {"python": platform.python_version(), **library_versions()}}


def machine(threads: int) -> dict[str, Any]:
    """Return the processor's name, how many cores this process may use, and the threads that a run had."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": processor_name(), "cores": cores, "threads": threads, "system": platform.system()}


@cache
def processor_name() -> str:
    """Return the processor's name as its maker writes it, or its architecture where that cannot be read."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def pathless(value: Any) -> Any:
    """Return a value with every absolute path in it cut to its last part: results name no folder of a machine.

    >>> pathless({"path": "/data/prompts.jsonl", "size": 3})
    {'path': 'prompts.jsonl', 'size': 3}
    """
    if isinstance(value, dict):
        return {key: pathless(item) for key, item in value.items()}
    if isinstance(value, list):
        return [pathless(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def commit(package: Path = PACKAGE) -> str:
    """Return the commit of the checkout that holds this package, marked if the library differs from it.

    The result is empty for an installed package.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent.resolve():
            return ""  # a package that is installed inside of somebody else's checkout
        code = [str(package.parent / name) for name in ("lmrl", "plugins", "benchmarks/lmrl_suites")]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
