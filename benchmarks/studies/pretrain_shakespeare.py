"""A small model pretrained on tinyshakespeare, its bits per byte beside n-grams and compressors on the same last tenth.

The first nine tenths of the text train everything, tokenizer included; the last tenth is read by nobody before the end.
The n-gram model is interpolated Kneser-Ney over bytes, its order chosen within the training part. Compressors see both
parts, and what they add for the last one is counted: they learn as they go, which a trained model does not.
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
import os
import platform
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from ngrams import best_length, train
from tqdm import tqdm

from lmrl.config import apply_overrides, build
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.pretrain import PretrainConfig, pretrain
from lmrl.statistics.intervals import mean_interval

FILE = Path("text") / "tinyshakespeare.txt"
HELD_OUT = 0.1
RECIPE: dict[str, Any] = {
    "model": {"architecture": "llama", "context_length": 128, "hidden_size": 128, "layers": 4, "heads": 4},
    "tokenizer": {"kind": "bpe", "vocabulary_size": 512},
    "train": {
        "steps": 1400,
        "rows": 16,
        "learning_rate": 4e-3,
        "warmup_steps": 100,
        "final_share": 0.02,
        "evaluate_every": 0,
        "evaluate_tokens": 0,
        "evaluate_overlap": 0.5,
    },
    "checkpoint": {"every": 0, "keep": 1},
    "trackers": [],
}
SMOKE = ["train.steps=5", "model.layers=1", "model.hidden_size=32", "train.evaluate_tokens=2000"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example:\n  python benchmarks/studies/pretrain_shakespeare.py --data ../shared/data --seeds 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {FILE}")
    parser.add_argument("--seeds", type=int, default=1, help="models trained; default 1")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="a few steps on the beginning, to see that it runs")
    arguments = parser.parse_args()
    text = (arguments.data / FILE).read_text(encoding="utf-8")
    if arguments.smoke:
        text = text[:50_000]
    cut = int(len(text) * (1 - HELD_OUT))
    parts = text[:cut].encode(), text[cut:].encode()
    records = [*compressors(*parts), ngrams(*parts, smoke=arguments.smoke)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text, encoding="utf-8")
        records += [neural(path, Path(folder), seed, arguments) for seed in range(arguments.seeds)]
    around = {
        "training_bytes": len(parts[0]),
        "held_out_bytes": len(parts[1]),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "lmrl": metadata.version("lmrl"),
        "torch": torch.__version__,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record | around) + "\n" for record in records)
    (arguments.results / "pretrain_shakespeare.jsonl").write_text(lines, encoding="utf-8")
    (arguments.results / "pretrain_shakespeare.md").write_text(table(records), encoding="utf-8")
    print(table(records))


def compressors(training: bytes, held_out: bytes) -> list[dict[str, Any]]:
    records = []
    for name, compress in (("bzip2", bz2.compress), ("xz", lambda data: lzma.compress(data, preset=9))):
        added = len(compress(training + held_out)) - len(compress(training))
        records.append({"method": name, "bits_per_byte": 8 * added / len(held_out)})
    return records


def ngrams(training: bytes, held_out: bytes, smoke: bool) -> dict[str, Any]:
    began = time.perf_counter()
    with tqdm(total=1, desc="n-grams", unit="model") as bar:
        length = best_length(training, range(2, 4) if smoke else range(3, 9))
        bits = train(training, length).bits(held_out)
        bar.update()
    return {
        "method": f"Kneser-Ney {length}-grams of bytes",
        "bits_per_byte": bits / len(held_out),
        "seconds": time.perf_counter() - began,
    }


def neural(path: Path, folder: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    overrides = [*(SMOKE if arguments.smoke else []), *arguments.overrides]
    recipe = RECIPE | {
        "corpus": {"paths": [str(path)], "held_out": HELD_OUT, "folder": str(folder / "corpus")},
        "run": {"folder": str(folder / f"run-{seed}"), "seed": seed},
    }
    began = time.perf_counter()
    result = pretrain(build(PretrainConfig, apply_overrides(recipe, overrides)))
    steps = [record for record in read_metrics(result.folder) if "train/loss" in record]
    print("\n".join(f"[seed {seed}] {line}" for line in result.samples[0].splitlines()[:12]))
    return {
        "method": "llama",
        "seed": seed,
        "parameters": result.parameters,
        "bits_per_byte": result.evaluation["bits_per_byte"],
        "nats_per_token": result.evaluation["loss"],
        "bits_per_byte_untrained": result.first_evaluation["bits_per_byte"],
        "training_loss": sum(record["train/loss"] for record in steps[-20:]) / len(steps[-20:]),
        "tokens": result.tokens,
        "epochs": result.tokens / len(result.corpus.tokens.split("train")),
        "seconds": time.perf_counter() - began,
        "tokens_per_second": sorted(record["time/tokens_per_second"] for record in steps)[len(steps) // 2],
        "mfu": sorted(record["time/mfu"] for record in steps)[len(steps) // 2],
        "peak": result.peak,
        "config": {"recipe": {key: recipe[key] for key in ("model", "tokenizer", "train")}, "overrides": overrides},
    }


def table(records: list[dict[str, Any]]) -> str:
    lines = ["| method | bits per byte of the last tenth | seconds |", "|---|---:|---:|"]
    lines.append("| uniform over 256 bytes | 8.000 | |")
    for record in records:
        if record["method"] != "llama":
            seconds = f"{record['seconds']:.0f}" if "seconds" in record else ""
            lines.append(f"| {record['method']} | {record['bits_per_byte']:.3f} | {seconds} |")
    models = [record for record in records if record["method"] == "llama"]
    if models:
        first = models[0]
        interval = mean_interval([record["bits_per_byte"] for record in models])
        shown = str(interval) if len(models) > 1 else f"{first['bits_per_byte']:.3f}"
        name = f"llama, {first['parameters']:,} parameters, {first['epochs']:.1f} epochs"
        name += f", {len(models)} seeds [95%]" if len(models) > 1 else ""
        lines.append(f"| {name} | {shown} | {first['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
