"""Memory and time of RL with a rank-16 adapter against all weights and a reference copy, on one model.

    python benchmarks/studies/rl_adapters.py MODEL --repeats 3

Each run is a process of its own: 16 prompts x 4 responses of at most 48 tokens, float32, microbatches of at most 512
tokens. Fixed memory is that of all tensors that are alive after an update, and of gradients; the rest of the peak is
activations and buffers of sampling. Peaks are those of the process without what it holds after one update on the
embedded model, which has 1 MiB.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from lmrl import hookimpl
from lmrl.config import build
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl

OPTIMIZERS = ("grpo", "ppo")
ARMS: dict[str, dict[str, Any]] = {
    "all weights": {"method": "none"},
    "lora, rank 16": {"method": "lora", "rank": 16},
}
PROMPTS = [
    f"{opening} {subject}"
    for opening in ("Once upon a time, there was", "The most important thing about", "A short story about", "I love")
    for subject in ("a little dog", "the old house", "music in the evening", "a long walk home")
]
MEBIBYTE = 2**20
MEMORY_FILE = "memory.txt"
MEASURES = ("peak", "fixed", "activations", "seconds", "tokens")


def likes_vowels(prompts: list[str], responses: list[str]) -> list[float]:
    return [sum(response.count(letter) for letter in "aeiou") / max(1, len(response)) for response in responses]


@hookimpl
def lmrl_run_start(run: Any) -> None:
    """Forget the peak of loading; this file is a plugin of the runs that it measures."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@hookimpl
def lmrl_step_end(run: Any, step: int, metrics: dict[str, float]) -> None:
    """Write down the bytes of tensors that are alive after an update, and of gradients."""
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    trained = [one for one in tensors if isinstance(one, torch.nn.Parameter) and one.requires_grad]
    gradients = sum(one.numel() * one.element_size() for one in trained if one.grad is None)
    (run.folder / MEMORY_FILE).write_text(str(sum(storages.values()) + gradients))


def train(model: str, optimizer: str, arm: str, updates: int, folder: Path) -> None:
    """Run `lmrl rl` on the prompts; an empty model is the embedded one."""
    config = {
        "model": model,
        "run": {"folder": str(folder), "device": "cpu", "precision": "no"},
        "sampling": {"max_new_tokens": 48},
        "train": {"updates": updates, "prompts_per_update": 16, "group_size": 4, "microbatch_tokens": 512},
        "adapter": ARMS[arm],
        "optimizer": {"name": optimizer},
        "evaluation": {"prompts": 0},
        "checkpoint": {"every": 0},
        "trackers": [],
    }
    plugins = PluginManager([Path(__file__)])
    rl(build(RLConfig, config), reward=likes_vowels, prompts=PROMPTS, plugins=plugins, progress=False)


def measure(model: str, optimizer: str, arm: str, updates: int) -> dict[str, float]:
    """Return the measures of one run in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        train("", optimizer, arm, 1, Path(name) / "first")  # imports what a run imports
        before = psutil.Process().memory_info().rss
        train(model, optimizer, arm, updates, folder)
        fixed = int((folder / MEMORY_FILE).read_text())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        records = [record for record in read_metrics(folder) if record["update"] > 1]
    parts = ("time/sample_seconds", "time/score_seconds", "time/update_seconds")
    return {
        "peak": (peak - before) / MEBIBYTE,
        "fixed": fixed / MEBIBYTE,
        "activations": (peak - before - fixed) / MEBIBYTE,
        "seconds": statistics.median(sum(record[part] for part in parts) for record in records),
        "tokens": statistics.mean(record["rollout/length"] for record in records),
    }


def in_process(model: str, optimizer: str, arm: str, updates: int) -> dict[str, float]:
    command = [sys.executable, __file__, model, "--updates", str(updates), "--one", optimizer, arm]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{optimizer}, {arm}:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    lines = [
        "| optimizer | trained | peak MiB | fixed MiB | activations MiB | seconds per update | tokens per response |",
        "|---|---|---|---|---|---|---|",
    ]
    middle = {
        key: {name: statistics.median(run[name] for run in runs) for name in MEASURES} for key, runs in found.items()
    }
    for (optimizer, arm), row in middle.items():
        times = [run["seconds"] for run in found[optimizer, arm]]
        lines.append(
            f"| {optimizer} | {arm} | {row['peak']:.0f} | {row['fixed']:.0f} | {row['activations']:.0f} "
            f"| {row['seconds']:.2f} ({min(times):.2f} to {max(times):.2f}) | {row['tokens']:.1f} |"
        )
    whole, adapter = ARMS
    for optimizer in dict.fromkeys(optimizer for optimizer, _ in found):
        ratio = {name: middle[optimizer, adapter][name] / middle[optimizer, whole][name] for name in MEASURES}
        lines.append(
            f"| {optimizer} | ratio | {ratio['peak']:.2f} | {ratio['fixed']:.2f} | {ratio['activations']:.2f} "
            f"| {ratio['seconds']:.2f} | {ratio['tokens']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example:\n  python benchmarks/studies/rl_adapters.py models/SmolLM2-135M-Instruct --repeats 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder of a causal language model")
    parser.add_argument("--updates", type=int, default=4, help="updates of a run; the first is not timed; default 4")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind, in turns; default 3")
    parser.add_argument("--only", choices=OPTIMIZERS, help="one of the optimizers")
    parser.add_argument("--one", nargs=2, metavar=("OPTIMIZER", "ARM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.model, *arguments.one, arguments.updates)))
        return
    chosen = [arguments.only] if arguments.only else OPTIMIZERS
    found: dict[tuple[str, str], list[dict[str, float]]] = {(one, arm): [] for one in chosen for arm in ARMS}
    for _ in range(arguments.repeats):
        for key, runs in found.items():
            runs.append(in_process(arguments.model, *key, arguments.updates))
            print(*key, {name: round(value, 2) for name, value in runs[-1].items()}, file=sys.stderr)
    print(table(found))


if __name__ == "__main__":
    main()
