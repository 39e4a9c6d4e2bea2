"""Peak memory of a side, each in a process of its own: what it holds beyond the imported libraries.

``python -m lmrl_suites.throughput.memory`` is that process: it reads a job from its standard input, does the work a few
times, and prints the bytes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lmrl.errors import LmrlError
from lmrl_suites.throughput import trl_peer
from lmrl_suites.throughput.setting import LARGE, Cell, ThroughputSettings
from lmrl_suites.throughput.stage import Stage

REPEATS = 2
EXTRA = ("trl_grpo, recomputing", "plain")
SIDES = ("lmrl", "trl_grpo", "trl_grpo, recomputing", "plain")


def measure(stage: Stage, cell: Cell) -> list[dict[str, Any]]:
    """Return one record per side of whole GRPO batches; the ratio is lmrl's bytes over the side's."""
    stage.release()
    large = stage.settings.leaves_out(stage.size, LARGE)
    records: list[dict[str, Any]] = []
    for side in SIDES:
        if not stage.settings.takes(side.split(",")[0]) or (side in EXTRA and large):
            continue
        reason = trl_peer.missing() if side.startswith("trl") else None
        if reason is not None:
            records.append({"side": side, "skipped": {side: reason}})
            continue
        records.append({"side": side, "unit": "bytes", "skipped": {}, **_in_own_process(stage, cell, side)})
    own = records[0]["peak_bytes"]
    for record in records[1:]:
        if record.get("peak_bytes"):  # the smallest model needs none beyond the libraries
            record["lmrl_share"] = own / record["peak_bytes"]
    return records


def _in_own_process(stage: Stage, cell: Cell, side: str) -> dict[str, Any]:
    job = {
        "settings": {**asdict(stage.settings), "smoke": False},
        "size": stage.size,
        "folder": str(stage.folder),
        "runs": str(stage.runs),
        "cell": asdict(cell),
        "side": side,
    }
    command = [sys.executable, "-m", "lmrl_suites.throughput.memory"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LmrlError(f"the process that measures the memory of {side} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job's work in this process and return its peak."""
    import torch

    from lmrl_suites.throughput.episodes import PlainBatch
    from lmrl_suites.throughput.learner import Learner

    settings = ThroughputSettings(**job["settings"])
    if settings.threads:
        torch.set_num_threads(settings.threads)
    settings.trl_checkpointing = "recomputing" in job["side"]
    stage = Stage(settings, job["size"], Path(job["folder"]), None, Path(job["runs"]))
    cell = Cell(**job["cell"])
    _import_libraries(job["side"], stage, cell)
    imported = _begin(settings.device)
    if job["side"] == "lmrl":
        Learner(stage, cell, cell.algorithm, updates=REPEATS).train()
    elif job["side"].startswith("trl"):
        trl_peer.TRLTrainer(stage, cell, cell.algorithm, updates=REPEATS).train()
    else:
        plain = PlainBatch(stage, cell)
        for number in range(REPEATS):
            plain.step(number)
    peak = _peak(settings.device)
    return {"peak_bytes": peak - imported, "imported_bytes": imported, "repeats": REPEATS}


def _import_libraries(side: str, stage: Stage, cell: Cell) -> None:
    """Import and use everything once with the smallest model, so that what is left is the model's."""
    import tempfile

    from lmrl_suites.throughput.shapes import SHAPES, write_model

    settings = replace(stage.settings, prompt_tokens=4, new_tokens=2, rows=8, microbatch_rows=8, group_sizes=[4])
    small = replace(cell, rows=8, group_size=4)
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "model", SHAPES["smoke"], 8)
        tiny = Stage(settings, "smoke", path, None, Path(folder))
        if side.startswith("trl"):
            trl_peer.TRLTrainer(tiny, small, cell.algorithm, updates=1).train()
        else:
            from lmrl_suites.throughput.episodes import PlainBatch
            from lmrl_suites.throughput.learner import Learner

            if side == "lmrl":
                Learner(tiny, small, cell.algorithm, updates=1).train()
            else:
                PlainBatch(tiny, small).step(0)


def _begin(device: str) -> int:
    """Return the bytes in use before the work, from where the peak is counted."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    # Linux sets the peak back to what is held now; elsewhere it stays that of the tiny model.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak(device)


def _peak(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    # On Linux ru_maxrss begins with the peak of the process that started this one; VmHWM is this process's own.
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(json.dumps(run_job(json.loads(sys.stdin.read()))))
