"""Processes of ``commit_throughput.py``: one per commit, which run one update each in turns."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commit_verdict import Measurement, Update

from lmrl.errors import LmrlError

SCRIPT = Path(__file__).with_name("commit_measurement.py")
WARM_UP = 2
"""Updates that are not counted: allocations, caches and the first optimizer step."""
TOKENS = "rollout/tokens"
SECONDS = {"sampling": "time/sample_seconds", "scoring": "time/score_seconds", "update": "time/update_seconds"}
"""Metrics of an update; ``whole`` is timed from turn to turn, so it includes work outside these phases."""


@dataclass(frozen=True)
class Side:
    """One commit: ``before`` or ``after``, its interpreter, and its work tree where one was given."""

    name: str
    python: Path
    root: Path | None = None


def find_side(name: str, given: str) -> Side:
    """Return the side of a work tree with an environment in .venv, or of an interpreter.

    Raises ``LmrlError`` if there is neither.
    """
    path = Path(given).expanduser().absolute()  # not resolved: an environment's python is a link out of it
    python = path / ".venv" / "bin" / "python" if path.is_dir() else path
    if not python.is_file():
        raise LmrlError(
            f"--{name} is {given}, and {python} does not exist; expected a work tree with an environment in .venv, or "
            "a Python interpreter. Install the work tree into one, or pass the interpreter of another environment."
        )
    return Side(name, python, path if path.is_dir() else None)


class Process:
    """A process that measures one side."""

    def __init__(self, side: Side, job: dict[str, Any], folder: Path) -> None:
        self.side = side
        self.errors = (folder / f"{side.name}.log").open("w+", encoding="utf-8")
        # A PYTHONPATH, or this script's folder on the path (-P), would give both sides the same modules.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.popen = subprocess.Popen(
            [side.python, "-P", SCRIPT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, cwd=folder, env=environment,
        )  # fmt: skip
        self.peak = 0
        """Largest resident memory so far, in bytes."""
        self.send(json.dumps({**job, "run": str(folder / side.name)}))

    def send(self, line: str = "") -> None:
        """Write a line: the job, or the start of a turn."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(line + "\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended, and the next report says why

    def report(self) -> dict[str, Any]:
        """Wait for the next report; raises ``LmrlError`` with the end of the log if the process has ended."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise LmrlError(f"the process of --{self.side.name} ended too early:\n{self.errors.read()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        self.peak = max(self.peak, found["peak_bytes"])
        return found

    def close(self) -> None:
        """End the process and close its files."""
        self.popen.kill()
        self.popen.communicate()
        self.errors.close()


def measure_pair(
    sides: tuple[Side, Side],
    job: dict[str, Any],
    folder: Path,
    after_first: bool = False,
    on_turn: Callable[[], None] = lambda: None,
) -> tuple[tuple[Measurement, Measurement], list[dict[str, Any]]]:
    """Measure both sides once in new processes; return the measurements and the versions of both.

    The processes take turns, one update each, in the order A B, B A, A B and so on; ``after_first`` reverses it.
    ``on_turn`` is called after every update. Raises ``LmrlError`` if a process fails or runs another work tree's code.
    """
    updates: tuple[list[Update], list[Update]] = ([], [])
    with _opened(sides, job, folder) as processes:
        versions = [process.report()["version"] for process in processes]
        for side, version in zip(sides, versions, strict=True):
            _check_place(side, Path(version["package"]))
        for number in range(job["updates"]):
            first = (number + after_first) % 2
            for place in (first, 1 - first):
                processes[place].send()
                updates[place].append(_update(sides[place], processes[place].report()))
                on_turn()
        for process in processes:
            process.send()
            process.report()
        peaks = [process.peak for process in processes]
    before, after = (Measurement(counted[WARM_UP:], peak) for counted, peak in zip(updates, peaks, strict=True))
    return (before, after), versions


@contextmanager
def _opened(sides: tuple[Side, Side], job: dict[str, Any], folder: Path) -> Iterator[list[Process]]:
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        processes = []
        for side in sides:
            process = Process(side, job, folder)
            stack.callback(process.close)
            processes.append(process)
        yield processes


def _check_place(side: Side, package: Path) -> None:
    if side.root is not None and package.parent.resolve() != side.root.resolve():
        raise LmrlError(
            f"{side.python} runs lmrl from {package.parent}; expected {side.root}. Install that work tree into its "
            "environment with pip install -e."
        )


def _update(side: Side, report: dict[str, Any]) -> Update:
    metrics = report["metrics"]
    missing = [name for name in (TOKENS, *SECONDS.values()) if name not in metrics]
    if missing:
        raise LmrlError(
            f"the metrics of --{side.name} lack {', '.join(missing)}; expected the timings of every update. Add their "
            f"new names to {Path(__file__).name}."
        )
    seconds = {phase: metrics[name] for phase, name in SECONDS.items()}
    return Update(metrics[TOKENS], {**seconds, "whole": report["seconds"]}, report["peak_bytes"])
