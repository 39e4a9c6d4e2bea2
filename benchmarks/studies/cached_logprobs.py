"""Differences between log-probabilities captured while sampling and those of one pass over the finished rows.

    python benchmarks/studies/cached_logprobs.py

Random Llamas of the throughput suite, 64 rows, float32. The difference is that of the order of additions alone; an
update takes the captured ones, so it is also how far from 1 the first ratio of an update lies.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from lmrl.engines import SamplingSpec, sample_batch
from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.models import load
from lmrl_suites.throughput.shapes import SHAPES, write_model


def differences(size: str, fast_path: bool) -> torch.Tensor:
    """Return the absolute differences of all sampled tokens, in nats."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(str(write_model(Path(folder) / "model", SHAPES[size], 128)), device="cpu").model
    generator = torch.Generator().manual_seed(0)
    prompts = [row for row in torch.randint(0, 2048, (8, 32), generator=generator).tolist() for _ in range(8)]
    engine = TransformersEngine(TransformersEngineSettings(fast_path=fast_path))
    samples = sample_batch(
        engine, model, prompts, SamplingSpec(max_new_tokens=64, eos_ids=tuple(range(0, 2048, 64))), seed=0
    )
    inputs = samples.inputs
    with torch.no_grad():
        logprobs = model(inputs.ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    again = logprobs[inputs.sampled[:, 1:]].gather(-1, inputs.actions[:, None]).squeeze(-1)
    return (again - samples.sampler_logprobs[samples.action_mask]).abs()


def main() -> None:
    """Print a table."""
    print("| model | path | tokens | largest difference | mean difference |\n|---|---|---|---|---|")
    for size in ("1M", "10M", "60M"):
        for fast_path in (True, False):
            found = differences(size, fast_path)
            path = "prompts shared" if fast_path else "the model's own step"
            print(f"| {size} | {path} | {len(found):,} | {found.max():.1e} | {found.mean():.1e} |")


if __name__ == "__main__":
    main()
