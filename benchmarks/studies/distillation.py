"""A student of 10 million weights learns from a chat model of 135 million: both KL divergences on held-out prompts.

    python benchmarks/studies/distillation.py MODEL --prompts QUESTIONS.jsonl

The student has random weights and the teacher's tokenizer. It first imitates responses of the teacher (sequence-level
distillation; Kim and Rush 2016), then learns on its own responses (GKD), and, for comparison, imitates for as many
seconds more. Forward KL is KL(teacher || student) in the states of the teacher's responses, reverse KL is
KL(student || teacher) in those of the student's, both in nats per token.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lmrl import RLTrainer
from lmrl.algorithms import Responses
from lmrl.algorithms.ops import kl_divergence, masked_mean
from lmrl.config import build
from lmrl.engines import SamplingSpec
from lmrl.engines.batch import sample_batch
from lmrl.engines.texts import sample_texts
from lmrl.models import LanguageModel, PolicyModel, load
from lmrl.models.text_policy import FrozenReference, TextPolicy
from lmrl.stages.sft import SFTConfig, sft
from lmrl.text.chat_template import prompt_ids

SHAPE = {"hidden_size": 144, "intermediate_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
TOKENS = 64
"""Tokens of a response at the most."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter, epilog=__doc__
    )
    parser.add_argument("model", help="folder of the teacher, a chat model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with a question each")
    parser.add_argument("--column", default="question", help="column of the question; default: question")
    parser.add_argument("--beta", type=float, default=0.5, help="GKD's beta; default 0.5")
    parser.add_argument("--responses", type=int, default=1024, help="responses of the teacher to imitate; default 1024")
    parser.add_argument("--epochs", type=int, default=8, help="passes over them; default 8")
    parser.add_argument("--updates", type=int, default=80, help="updates of GKD; default 80")
    parser.add_argument("--rows", type=int, default=64, help="prompts of an update; default 64")
    parser.add_argument("--held-out", type=int, default=64, help="prompts to measure on; default 64")
    parser.add_argument("--precision", default="bf16", help="of the passes of both models; default bf16")
    parser.add_argument("--results", type=Path, help="write the table's rows to this file too")
    arguments = parser.parse_args()
    lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)[arguments.column] for line in lines]
    random.Random(0).shuffle(questions)
    print(table(study(arguments, questions)))


def study(arguments: argparse.Namespace, questions: list[str]) -> list[dict[str, Any]]:
    """Return one record per stage."""
    held_out, rest = questions[: arguments.held_out], questions[arguments.held_out :]
    start, records = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        teacher, folder = load(arguments.model), Path(scratch)
        student = write_student(Path(arguments.model), folder / "student")

        def measured(stage: str, path: Path) -> None:
            record = {"stage": stage, "seconds": round(time.perf_counter() - start)} | divergences(
                load(path), teacher, held_out
            )
            records.append(record)
            print(json.dumps(record), flush=True)
            if arguments.results:
                arguments.results.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")

        measured("random weights", student)
        rows = imitated(teacher, rest[: arguments.responses])
        print(f"{len(rows)} responses of the teacher after {time.perf_counter() - start:.0f} s", flush=True)
        imitator = timed(lambda: imitate(student, rows, arguments, folder / "imitation", arguments.epochs))
        measured("imitation", imitator[0])
        distilled = timed(lambda: distil(imitator[0], rest, arguments, folder / "gkd"))
        measured(f"imitation, then GKD (beta {arguments.beta:g})", distilled[0])
        epochs = max(1, round(arguments.epochs * distilled[1] / imitator[1]))
        further = imitate(imitator[0], rows, arguments, folder / "further", epochs)
        measured("imitation, then as many seconds of it", further)
    return records


def write_student(teacher: Path, folder: Path) -> Path:
    """Write a model with random weights and the teacher's tokenizer, template and end tokens."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    base = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    ends = {name: base.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=base["vocab_size"], max_position_embeddings=1024, tie_word_embeddings=True, **SHAPE, **ends
    )
    model = LlamaForCausalLM(config)
    print(f"student: {sum(one.numel() for one in model.parameters()) / 1e6:.1f} million weights", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def timed(work: Callable[[], Path]) -> tuple[Path, float]:
    """Return what ``work`` returns, and its seconds."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def asked(model: LanguageModel, questions: list[str]) -> list[list[int]]:
    """Return the ids of each question as a user's message."""
    return [prompt_ids(model.card.codec, [{"role": "user", "content": question}])[1] for question in questions]


def imitated(teacher: LanguageModel, questions: list[str]) -> list[dict[str, Any]]:
    """Return rows to imitate: the teacher's responses."""
    spec = SamplingSpec(max_new_tokens=TOKENS, eos_ids=teacher.card.eos_ids)
    found = sample_texts(teacher, asked(teacher, questions), spec, seed=1)
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": one.text}]}
        for question, one in zip(questions, found, strict=True)
    ]


def imitate(model: Path, rows: list[dict[str, Any]], arguments: argparse.Namespace, folder: Path, epochs: int) -> Path:
    """Fine-tune on the teacher's responses."""
    run = {"folder": str(folder), "precision": arguments.precision}
    train = {"epochs": epochs, "learning_rate": 2e-3}
    config = build(
        SFTConfig, {"model": str(model), "run": run, "train": train, "data": {"held_out": 0}, "samples": {"prompts": 0}}
    )
    sft(config, examples=rows, progress=False)
    return folder


def distil(model: Path, questions: list[str], arguments: argparse.Namespace, folder: Path) -> Path:
    """Let the student learn on its own responses."""
    with RLTrainer(
        model,
        optimizer={"name": "gkd", "teacher": arguments.model, "beta": arguments.beta},
        prompts=[{"messages": [{"role": "user", "content": question}]} for question in questions],
        prompts_per_update=arguments.rows,
        max_new_tokens=TOKENS,
        learning_rate=5e-4,
        schedule="linear",
        updates=arguments.updates,
        precision=arguments.precision,
    ) as trainer:
        for number, metrics in enumerate(trainer.steps(arguments.updates), 1):
            if number % 10 == 0:
                print(f"update {number}: divergence {metrics['optimizer/loss']:.3f}", flush=True)
        trainer.save(folder)
    return folder


def divergences(student: LanguageModel, teacher: LanguageModel, questions: list[str]) -> dict[str, float]:
    """Return both divergences per token."""
    spec = SamplingSpec(max_new_tokens=TOKENS, eos_ids=teacher.card.eos_ids)
    policy = TextPolicy(PolicyModel(student.model), spec, False, others={"teacher": FrozenReference(teacher.model)})
    ids = asked(teacher, questions)

    def per_token(sampled: LanguageModel, function: Callable[[Tensor, Tensor], Tensor]) -> float:
        samples = sample_batch(engine(), sampled.model, ids, spec, seed=2)
        columns = []
        for rows in policy.microbatches(samples, 2048):
            part = Responses(samples.inputs, samples.action_mask).select(rows)
            columns.append(policy.compare(part, "teacher", function)[part.action_mask])
            policy.forget()
        values = torch.cat(columns)
        return round(float(masked_mean(values, torch.ones_like(values, dtype=torch.bool))), 3)

    with torch.no_grad():
        return {
            "forward_kl": per_token(teacher, lambda own, other: kl_divergence(other, own)),
            "reverse_kl": per_token(student, kl_divergence),
        }


def engine() -> Any:
    """Return the default engine."""
    from lmrl.engines.local.engine import TransformersEngine

    return TransformersEngine()


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as a table."""
    lines = ["| student | seconds from the start | forward KL | reverse KL |", "|---|---|---|---|"]
    lines += [f"| {one['stage']} | {one['seconds']} | {one['forward_kl']} | {one['reverse_kl']} |" for one in records]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
