"""Sampling: lmrl's engine against ``model.generate``; a row's tokens count up to its end."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from lmrl.engines import sample_batch
from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.settings import TransformersEngineSettings
from lmrl_suites.throughput.flops import decode_floor, sampling_flops
from lmrl_suites.throughput.setting import LARGE, Cell
from lmrl_suites.throughput.stage import Stage
from lmrl_suites.throughput.timing import Comparison, SuiteRun, compare

Sample = Callable[[Stage, Cell, Sequence[list[int]], int, int], list[int]]
"""``sample(stage, cell, prompts, new_tokens, number)`` draws once and returns every response's length."""
BASELINE = "generate"
ONE_TOKEN = ", one token"
"""Sides that read the prompts and draw one token: what is left of the whole is decoding."""


def measure(stage: Stage, cell: Cell) -> Comparison:
    """Compare sampled tokens per second; at full length also the seconds of a decode step."""
    prompts = stage.prompts(cell)
    lengths_of: dict[str, list[list[int]]] = {}
    sides: dict[str, SuiteRun] = {}

    def add(name: str, sample: Sample, new_tokens: int) -> None:
        lengths_of[name] = []

        def run(number: int) -> int:
            lengths = sample(stage, cell, prompts, new_tokens, number)
            lengths_of[name].append(lengths)
            return sum(lengths)

        sides[name] = run

    chosen: dict[str, Sample] = {"lmrl": sample_lmrl}
    if stage.settings.takes("generate"):
        chosen[BASELINE] = sample_generate
    slow = cell.workload == "queue" or stage.settings.leaves_out(stage.size, LARGE)
    if stage.settings.takes("generate_logprobs") and not slow:
        chosen["generate, log-probabilities"] = sample_generate_logprobs
    for name, sample in chosen.items():
        add(name, sample, stage.settings.new_tokens)
    steps = cell.workload == "sampling" and cell.lengths == "full"
    if steps:
        for name in ("lmrl", BASELINE):
            if name in chosen:
                add(name + ONE_TOKEN, chosen[name], 1)
    comparison = compare("sampled tokens", sides, stage.settings.rounds, BASELINE, stage.device)
    for side in comparison.sides:
        for lengths in lengths_of[side.name][1:]:
            distinct = cell.rows // cell.group_size
            side.flops.append(sampling_flops(stage.shape, stage.settings.prompt_tokens, distinct, lengths))
    if steps:
        _note_decode_steps(stage, cell, comparison)
    return comparison


def _note_decode_steps(stage: Stage, cell: Cell, comparison: Comparison) -> None:
    """Turn the one-token sides into a decode step's seconds, and set them beside their floor."""
    by_name = {side.name: side for side in comparison.sides}
    prompt, new = stage.settings.prompt_tokens, stage.settings.new_tokens
    for name in ("lmrl", BASELINE):
        if name not in by_name or new < 2:
            continue
        side, first = by_name[name], by_name[name + ONE_TOKEN]
        step = (statistics.median(side.seconds) - statistics.median(first.seconds)) / (new - 1)
        side.notes |= {"decode_step_seconds": step, "prefill_seconds": statistics.median(first.seconds)}
        if stage.peaks is not None:
            element = stage.dtype.itemsize
            context = prompt + new / 2
            peaks = stage.peaks
            floor = decode_floor(stage.shape, cell.rows, context, element, peaks.flops, peaks.bandwidth)
            side.notes |= {"decode_floor_seconds": floor, "share_of_floor": floor / step if step > 0 else None}
    comparison.sides = [side for side in comparison.sides if not side.name.endswith(ONE_TOKEN)]


def sample_lmrl(stage: Stage, cell: Cell, prompts: Sequence[list[int]], new_tokens: int, number: int) -> list[int]:
    """Sample with lmrl's engine; of a longer queue as many rows stand side by side as ``generate`` is given."""
    engine = TransformersEngine(TransformersEngineSettings(rows=min(cell.rows, stage.settings.rows)))
    samples = sample_batch(engine, stage.model, prompts, stage.spec(cell.lengths, new_tokens), number)
    return samples.inputs.action_counts.tolist()


def sample_generate(
    stage: Stage, cell: Cell, prompts: Sequence[list[int]], new_tokens: int, number: int, logprobs: bool = False
) -> list[int]:
    """Sample as a user of transformers would, in batches of ``rows``."""
    torch.manual_seed(number)
    lengths: list[int] = []
    for start in range(0, len(prompts), stage.settings.rows):
        response = generate(
            stage.model,
            torch.tensor(prompts[start : start + stage.settings.rows], device=stage.device),
            stage.spec(cell.lengths).eos_ids,
            new_tokens,
            logprobs,
        )
        lengths += response_lengths(response, stage.spec(cell.lengths).eos_ids).tolist()
    return lengths


def sample_generate_logprobs(
    stage: Stage, cell: Cell, prompts: Sequence[list[int]], new_tokens: int, number: int
) -> list[int]:
    """The same with each token's log-probability, which a learner needs and lmrl always records."""
    return sample_generate(stage, cell, prompts, new_tokens, number, logprobs=True)


def generate(model: Any, ids: Tensor, eos_ids: Sequence[int], new_tokens: int, logprobs: bool = False) -> Tensor:
    """Return what ``model.generate`` appends to the prompts, (B, T)."""
    # The model's own configuration fills what a call leaves out, an EOS included, so it is replaced.
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=new_tokens,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=logprobs,
        output_logits=logprobs,
    )
    result = model.generate(ids, attention_mask=torch.ones_like(ids))
    response: Tensor = (result.sequences if logprobs else result)[:, ids.shape[1] :]
    if logprobs:
        logits = torch.stack(result.logits, dim=1)
        logits.log_softmax(-1).gather(-1, response[..., None])
    return response


def response_lengths(response: Tensor, eos_ids: Sequence[int]) -> Tensor:
    """Return how many tokens of each row, (B, T), stand before its end, the EOS included, (B,)."""
    if not eos_ids:
        return torch.full((len(response),), response.shape[1], device=response.device)
    ended = torch.isin(response, torch.tensor(list(eos_ids), device=response.device))
    return ((ended.cumsum(1) - ended.long()) == 0).sum(1)


def stop_probability(stage: Stage, rows: int = 256) -> float:
    """Return the share of ids drawn at full length that would have ended a row: it should be near 1/16."""
    cell = Cell("sampling", stage.size, "full", 1, rows)
    samples = sample_batch(TransformersEngine(), stage.model, stage.prompts(cell), stage.spec("full"), 0)
    return float((samples.inputs.actions >= min(stage.shape.stop_ids)).float().mean())
