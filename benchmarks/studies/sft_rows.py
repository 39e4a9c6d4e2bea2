"""Packed rows against rows sorted by length and padded: tokens per second of processor time, forward and backward.

The rows are real instructions, the models a 260k-parameter Llama and a random one of 8 million. Processor time and not
the clock's, on one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from lmrl.data import load_examples
from lmrl.models import load
from lmrl.stages.sft.batches import AnswerModel, Row, make_microbatches
from lmrl.stages.sft.config import SFTDataSettings
from lmrl.stages.sft.rows import encode_examples
from lmrl.statistics.intervals import mean_interval
from lmrl.text.chat_setup import TemplateSettings, set_up_chat

LAYOUTS = {
    "padded": {"packed": False},
    "packed to the longest": {"packed": True},
    "packed to 256": {"packed": True, "width": 256},
    "packed to 512": {"packed": True, "width": 512},
}
EXAMPLES_PER_STEP = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example:\n  python benchmarks/studies/sft_rows.py --data ../shared/data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds sft/ and models/stories260K-llama")
    parser.add_argument("--budgets", type=int, nargs="+", default=[1024, 2048], help="positions per microbatch")
    parser.add_argument("--repetitions", type=int, default=5, help="times that each is measured; default 5")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="one repetition of one step, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = {"stories260K": 1, "8M": 1} if arguments.smoke else {"stories260K": 8, "8M": 2}
    rows, models = prepare(arguments.data)
    records = []
    for name, model in models.items():
        for repetition in range(1 if arguments.smoke else arguments.repetitions):
            for layout, settings in LAYOUTS.items():
                for budget in arguments.budgets:
                    record = {"model": name, "rows": layout, "budget": budget, "repetition": repetition}
                    records.append(record | measure(model, rows, steps[name], budget, settings))
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (arguments.results / "sft_rows.jsonl").write_text(text, encoding="utf-8")
    (arguments.results / "sft_rows.md").write_text(table(records), encoding="utf-8")
    print(table(records))


def prepare(data: Path) -> tuple[list[Row], dict[str, AnswerModel]]:
    real = load(data / "models" / "stories260K-llama")
    settings = SFTDataSettings(path=str(data / "sft" / "rasbt_instruction_data.json"))
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up_chat(real.card.path, real.card.codec, TemplateSettings(name="plain"), Path(folder))
        rows = encode_examples(load_examples(None, settings), setup.codec, real.card.eos_ids, settings, 512, 512).rows
    random.Random(0).shuffle(rows)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    models = {"stories260K": real.model, "8M": transformers.LlamaForCausalLM(config)}
    return rows, {name: AnswerModel(model).train() for name, model in models.items()}


def measure(model: AnswerModel, rows: list[Row], steps: int, budget: int, settings: dict[str, Any]) -> dict[str, float]:
    positions, tokens = 0, 0
    began = time.process_time()
    for step in range(steps):
        part = rows[step * EXAMPLES_PER_STEP : (step + 1) * EXAMPLES_PER_STEP]
        tokens += sum(map(len, part))
        for batch in make_microbatches(part, budget, **settings):
            nats, _ = model(batch.ids, batch.positions, batch.predicts, batch.targets)
            nats.sum().backward()
            positions += batch.tokens
    return {"tokens_per_second": tokens / (time.process_time() - began), "padding": positions / tokens - 1}


def table(records: list[dict[str, Any]]) -> str:
    lines = ["| model | rows | positions per microbatch | tokens/s | padding |", "|---" * 5 + "|"]
    for key in dict.fromkeys((record["model"], record["rows"], record["budget"]) for record in records):
        same = [r for r in records if (r["model"], r["rows"], r["budget"]) == key]
        speed = mean_interval([record["tokens_per_second"] for record in same])
        spread = f" [{speed.low:.0f}, {speed.high:.0f}]" if len(same) > 1 else ""
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {speed.mean:.0f}{spread} | {same[0]['padding']:.0%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
