"""Run the RL stage of the installed lmrl, one update per turn, for ``commit_throughput.py``.

The first line of standard input is the job as JSON; every further line starts the next update. Standard output gets one
JSON line when the run is ready, one per update and one at the end. Both versions of a comparison run this file, so it
uses public names only. It is also its own plugin file, because hooks report the end of every update.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmrl import hookimpl

_turns: list[float] = []
"""Times at which the turns began."""


@hookimpl
def lmrl_run_start(run: Any) -> None:
    """Report the version of the code once the model is loaded, and wait for the first turn."""
    wait_for_turn({"version": version()})


@hookimpl
def lmrl_step_end(step: int, metrics: dict[str, float]) -> None:
    """Report an update, and wait for the next turn."""
    wait_for_turn({"seconds": time.perf_counter() - _turns[-1], "metrics": metrics})


def wait_for_turn(report: dict[str, Any]) -> None:
    """Write a report and wait until a line is read; end the process if standard input is closed."""
    send(report)
    if not sys.stdin.readline():
        raise SystemExit("standard input was closed before the last turn")
    with suppress(OSError):  # Linux resets the peak; elsewhere it is the peak since the start of the process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    _turns.append(time.perf_counter())


def send(report: dict[str, Any]) -> None:
    """Write a report, with the peak memory since the turn began."""
    print(json.dumps({**report, "peak_bytes": peak_bytes()}), file=sys.__stdout__, flush=True)


def measure(job: dict[str, Any]) -> None:
    """Run all updates of the job."""
    from lmrl import PluginManager, RLConfig, rl
    from lmrl.config import build

    table = {
        "model": job["model"],
        "run": {"folder": job["run"], "seed": job["seed"], "device": "cpu"},
        "sampling": {"max_new_tokens": job["new_tokens"]},
        "kl": {"beta": 0.04},
        "optimizer": {"name": "grpo"},
        "train": {
            "updates": job["updates"],
            "prompts_per_update": job["prompts_per_update"],
            "group_size": job["group_size"],
            "learning_rate": 1e-9,  # the last update measures the same model as the first
        },
        "evaluation": {"prompts": 0},
        "checkpoint": {"every": 0},
        "trackers": [],
    }
    plugins = PluginManager(files=[__file__])
    rl(build(RLConfig, table), reward=score_words, prompts=job["prompts"], plugins=plugins, progress=False)
    send({})


def score_words(prompts: list[str], responses: list[str]) -> list[float]:
    """Return every response's fraction of words that end in an even digit."""
    words = [response.split() for response in responses]
    return [sum(word[-1] in "02468" for word in row) / max(len(row), 1) for row in words]


def peak_bytes() -> int:
    """Return the largest resident memory of this process."""
    # On Linux ru_maxrss begins with the peak of the process that started this one; VmHWM is this process's own.
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def version() -> dict[str, Any]:
    """Return the folder of the lmrl that ran, the versions of Python and torch, and torch's threads."""
    import torch

    import lmrl

    return {
        "package": str(Path(lmrl.__file__).parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    sys.stdout = sys.stderr  # standard output holds reports only
    measure(json.loads(sys.stdin.readline()))
