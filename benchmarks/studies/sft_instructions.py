"""A story model fine-tuned on real instructions: held-out nats per token of the answer, all weights and LoRA.

Each seed splits the rows anew and shuffles them anew. The table's intervals are Student's t over seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmrl.config import build
from lmrl.stages.sft import SFTConfig, sft
from lmrl.statistics.intervals import mean_interval

DATA = {
    "rasbt": ("rasbt_instruction_data.json", 2.0),
    "self-instruct": ("self_instruct_seed_tasks.jsonl", 6.0),
}
"""Name, file below the data folder's sft, and passes over its rows."""
ARMS: dict[str, dict[str, Any]] = {
    "all weights": {"train": {"learning_rate": 5e-3}},
    "all weights, plain template": {"train": {"learning_rate": 5e-3}, "template": {"name": "plain"}},
    "LoRA, rank 8": {
        "train": {"learning_rate": 1.5e-2},
        "adapter": {"method": "lora", "rank": 8, "alpha": 16.0},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example:\n  python benchmarks/studies/sft_instructions.py --data ../shared/data --seeds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds sft/ and models/stories260K-llama")
    parser.add_argument("--model", help="another model; default: stories260K-llama of the data folder")
    parser.add_argument("--seeds", type=int, default=5, help="splits and orders; default 5")
    parser.add_argument("--only", choices=sorted(DATA), help="one of the data sets")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="3 steps on 96 rows, 2 seeds, to see that it runs")
    arguments = parser.parse_args()
    seeds = 2 if arguments.smoke else arguments.seeds
    names = [arguments.only] if arguments.only else list(DATA)
    records = []
    arguments.results.mkdir(parents=True, exist_ok=True)
    # Lines are written as they come: a study that is stopped keeps what it has.
    with (arguments.results / "sft_instructions.jsonl").open("w", encoding="utf-8") as file:
        for name, arm, seed in tqdm([(n, a, s) for n in names for a in ARMS for s in range(seeds)], unit="run"):
            record = one_run(arguments, name, arm, seed)
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
    (arguments.results / "sft_instructions.md").write_text(table(records), encoding="utf-8")
    print(table(records))


def one_run(arguments: argparse.Namespace, name: str, arm: str, seed: int) -> dict[str, Any]:
    path, epochs = DATA[name]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model": arguments.model or str(arguments.data / "models" / "stories260K-llama"),
            "run": {"folder": f"{folder}/run", "seed": seed, "device": "cpu"},
            "data": {"path": str(arguments.data / "sft" / path), "limit": 96 if arguments.smoke else 0},
            "samples": {"prompts": 0},
            "checkpoint": {"every": 0},
            "trackers": [],
        }
        settings |= {key: value for key, value in ARMS[arm].items() if key != "train"}
        train = {"epochs": 0.0 if arguments.smoke else epochs, "steps": 3, "warmup_steps": 5, "evaluate_every": 0}
        if name == "self-instruct":
            train["examples_per_step"] = 16
        result = sft(build(SFTConfig, settings | {"train": train | ARMS[arm]["train"]}), progress=False)
    return {
        "data": name,
        "arm": arm,
        "seed": seed,
        "examples": result.examples,
        "held_out": result.held_out,
        "tokens": result.after["tokens"],
        "steps": result.steps,
        "trained_parameters": result.trained_parameters,
        "parameters": result.parameters,
        "before": result.before["loss"],
        "after": result.after["loss"],
        "accuracy": result.after["accuracy"],
        "skipped": result.skipped,
        "seconds": time.perf_counter() - began,
    }


def table(records: list[dict[str, Any]]) -> str:
    lines = [
        "| data | trained | parameters | steps | before | after | gain | right tokens | seeds |",
        "|---" * 9 + "|",
    ]
    for name, arm in dict.fromkeys((record["data"], record["arm"]) for record in records):
        rows = [record for record in records if (record["data"], record["arm"]) == (name, arm)]
        before, after = ([row[column] for row in rows] for column in ("before", "after"))
        gain = [one - other for one, other in zip(before, after, strict=True)]
        right = [row["accuracy"] for row in rows]
        cells = [name, arm, f"{rows[0]['trained_parameters']:,}", str(rows[0]["steps"])]
        cells += [str(mean_interval(values)) for values in (before, after, gain)]
        cells += [f"{sum(right) / len(right):.1%}", str(len(rows))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
