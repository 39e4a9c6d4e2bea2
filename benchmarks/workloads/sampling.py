"""Sampling: lmrl's engine against ``model.generate``, at full length and with rows that end by themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import GenerationConfig

from lmrl.sampling.transformers_engine import TransformersEngine
from workloads.setting import Setting
from workloads.timing import Comparison, Run, compare

SIDES = 3


def measure(setting: Setting, varying: bool, tick: Callable[[], None]) -> Comparison:
    """Compare tokens sampled per second; a row's tokens after its end do not count."""
    sides: dict[str, Run] = {
        "lmrl": lambda number: _lmrl(setting, varying, number),
        "generate, log-probabilities": lambda number: _generate(setting, varying, number, logprobs=True),
        "generate": lambda number: _generate(setting, varying, number, logprobs=False),
    }
    name = "sampling, varying length" if varying else "sampling, full length"
    return compare(name, "sampled tokens", sides, setting.runs, "generate", tick)


def _lmrl(setting: Setting, varying: bool, number: int) -> int:
    prompts = [setting.prompt_ids] * setting.rows
    samples = TransformersEngine().generate(setting.language_model.model, prompts, setting.spec(varying), number)
    return int(samples.inputs.response_lengths.sum())


def _generate(setting: Setting, varying: bool, number: int, logprobs: bool) -> int:
    """Sample as a user of transformers would; ``logprobs`` adds what a learner needs and lmrl always records."""
    model = setting.language_model.model
    stop_ids = list(setting.stop_ids) if varying else None
    # The model's own configuration fills what a call leaves out, an EOS included, so it is replaced.
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=setting.new_tokens,
        eos_token_id=stop_ids,
        pad_token_id=0,
        return_dict_in_generate=logprobs,
        output_logits=logprobs,
    )
    torch.manual_seed(number)
    ids = torch.tensor([setting.prompt_ids] * setting.rows)
    result = model.generate(ids, attention_mask=torch.ones_like(ids))
    response = (result.sequences if logprobs else result)[:, ids.shape[1] :]
    if logprobs:
        logits = torch.stack(result.logits, dim=1)
        logits.log_softmax(-1).gather(-1, response[..., None])
    if stop_ids is None:
        return response.numel()
    ended = torch.isin(response, torch.tensor(stop_ids))
    before_end = (ended.cumsum(1) - ended.long()) == 0
    return int(before_end.sum())
