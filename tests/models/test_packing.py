"""Packed rows say what padded rows say, with the same gradients; where they would not, rows stay padded."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lmrl.algorithms.sequences import Sequences
from lmrl.models.head import head_logprobs
from lmrl.models.layouts import LAYOUTS
from lmrl.models.layouts.packable import attends_to_everything
from lmrl.models.layouts.packed import ATTENTION_NAME, PackedLayout, pack
from lmrl.models.policy import PolicyModel

SIZES = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.3}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, num_key_value_heads=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**WIDE, num_key_value_heads=2, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3)
    ),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**WIDE)),
}
ROWS = {
    "shared": (
        [[1, 2, 3], [4], [1, 2, 3], [5, 6], [1, 2, 3], [4]],
        [[7, 8], [9], [10, 11, 12, 13], [3], [2], [1, 2, 3]],
    ),
    "distinct": ([[1, 2], [1, 2, 0], [3]], [[4, 5, 6], [7], [8, 9]]),
    "equal": ([[5, 6, 7]] * 3, [[1], [2, 3, 4, 5, 6, 7, 8, 9], [1]]),
    "one token each": ([[1], [2], [1]], [[3], [4], [5]]),
}

TURNS = {
    "a tool between turns": [
        [[([1, 2, 3], False), ([4, 5], True), ([6, 7, 8], False), ([9], True), ([2], False)]],
        [[([1, 2, 3], False), ([4], True), ([6, 7], False), ([9, 9, 3], True)]],
        [[([5], False), ([4], True)]],
    ],
    "contexts that were rewritten": [
        [[([1, 2], False), ([3, 4], True)], [([1, 2, 4], False), ([5], True)], [([7], False), ([8, 9], True)]],
        [[([1, 2], False), ([6], True), ([7], False), ([5], True)]],
        [[([1, 2], False), ([3], True)], [([1, 2, 4], False), ([5, 5], True), ([11, 12], False)]],
    ],
    "no action": [
        [[([1, 2], False)]],
        [[([1, 2], False), ([3], True)]],
        [[([4], False)], [([4, 5], False), ([6], True)]],
    ],
}


def model_of(family):
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def inputs_of(prompts, responses, extra=0):
    inputs = Sequences.of_pairs(zip(prompts, responses, strict=True))
    return replace(inputs, ids=pad(inputs.ids, (0, extra)), sampled=pad(inputs.sampled, (0, extra)))


def in_each(model, inputs, **wanted):
    """Outputs and gradients of a random sum of them, in every layout."""
    torch.manual_seed(1)
    results = []
    for layout in LAYOUTS[:2] if "temperature" in wanted else LAYOUTS:  # the general one gives no log-probabilities
        policy = PolicyModel(copy.deepcopy(model), with_values=True)
        torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(2))
        policy.layout = layout
        outputs = policy(inputs, need_values=True, **wanted)
        columns = [c for c in (outputs.logits, outputs.logprobs, outputs.values) if c is not None]
        generator = torch.Generator().manual_seed(3)
        sum((torch.randn(c.shape, generator=generator) * c).sum() for c in columns).backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        results.append(([c.detach() for c in columns], gradient))
    return results


def check_equal(packed, *others):
    for padded in others:
        for one, other in zip(packed[0], padded[0], strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert (packed[1] - padded[1]).norm() <= 1e-5 * padded[1].norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", ROWS)
def test_packed_is_padded(family, rows):
    model = model_of(family)
    assert PolicyModel(model).layout.name == "packed"
    inputs = inputs_of(*ROWS[rows])
    order = torch.randperm(len(ROWS[rows][0]), generator=torch.Generator().manual_seed(0))
    for batch in (inputs, inputs.select(order)):
        for wanted in ({"temperature": 0.7}, {}, {"include_last": True}):
            check_equal(*in_each(model, batch, **wanted))
    assert model.config._attn_implementation != ATTENTION_NAME


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("turns", TURNS)
def test_packed_is_padded_over_turns(family, turns):
    model, rows = model_of(family), Sequences.of(TURNS[turns])
    order = torch.tensor([2, 0, 1, 0])
    for batch in (rows, rows.select(order)):
        for wanted in ({"temperature": 0.7}, {}, {"include_last": True}):
            check_equal(*in_each(model, batch, **wanted))


def test_rows_of_very_different_lengths_make_blocks_and_change_nothing():
    prompts = [[1 + i % 7] * (1 + i % 3) for i in range(12)]
    responses = [[(i * j) % 23 for j in range(1 + 2 * i)] for i in range(12)]
    inputs = inputs_of(prompts, responses, extra=4)
    packing = pack(inputs)
    assert len(packing.blocks) > 3
    assert sum(rows for rows, _ in packing.blocks) == 12
    # What stands in the blocks beyond the tokens is little.
    assert len(packing.slots) <= 1.25 * sum(len(p) + len(r) - 1 for p, r in zip(prompts, responses, strict=True))
    check_equal(*in_each(model_of("qwen2"), inputs, temperature=1.3))


def test_a_shared_prompt_is_computed_once_and_the_last_token_not_at_all():
    inputs = inputs_of(*ROWS["shared"])
    prompts = {tuple(prompt) for prompt in ROWS["shared"][0]}
    tokens = sum(map(len, prompts)) + sum(len(response) - 1 for response in ROWS["shared"][1])
    assert len(pack(inputs).ids) == tokens
    assert len(pack(inputs, include_last=True).ids) == tokens + len(ROWS["shared"][1])


def test_prompts_that_differ_only_in_a_last_token_equal_to_the_padding_stay_apart():
    packing = pack(inputs_of([[1, 2], [1, 2, 0]], [[3], [3]]))
    assert packing.context_shape == (2, 3)


@pytest.mark.parametrize("window", [8, 64])
def test_a_window_shorter_than_the_context_stays_padded(window):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=window)).eval()
    policy = PolicyModel(model)
    assert policy.layout.name == ("packed" if window > 32 else "padded")
    prompt, responses = [1, 2, 3], [list(range(20)), list(range(3, 15))]
    logits = policy(inputs_of([prompt] * 2, responses)).logits
    alone = [model(torch.tensor([prompt + response])).logits[0, 2:-1] for response in responses]
    assert torch.allclose(logits, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
        {"attention_chunk_size": 8},
        {"layer_types": ["full_attention", "linear_attention"]},
    ],
)
def test_windows_are_read_from_the_configuration(config):
    assert attends_to_everything(LlamaConfig(**WIDE))
    assert not attends_to_everything(LlamaConfig(**WIDE, **config))


def test_attention_that_is_not_transformers_own_stays_padded():
    config = FalconConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, alibi=True)
    torch.manual_seed(0)
    assert PackedLayout().unsupported(FalconForCausalLM(config).eval())
    assert "no transformers model" in PackedLayout().unsupported(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("kept", "chunk"), [(10**6, 10**6), (0, 3 * 11), (0, 1)])
def test_log_probabilities_of_hidden_states(monkeypatch, temperature, kept, chunk):
    monkeypatch.setattr("lmrl.models.head.KEPT_ENTRIES", kept)
    monkeypatch.setattr("lmrl.models.head.CHUNK_ENTRIES", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (3 * torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (8, 11))
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    ids, upstream = torch.arange(8), torch.randn(8, generator=generator)

    def plain():
        return ((hidden @ weight.T) / temperature).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)

    results = []
    for compute in (lambda: head_logprobs(hidden, weight, ids, temperature), plain):
        logprobs = compute()
        first = torch.autograd.grad((upstream * logprobs).sum(), (hidden, weight))
        again = torch.autograd.grad((upstream * compute() ** 2).sum(), (hidden, weight), create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in again), (hidden, weight))
        results.append([logprobs.detach(), *first, *second])
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_half_precision_weights_sum_in_single_precision(monkeypatch):
    monkeypatch.setattr("lmrl.models.head.KEPT_ENTRIES", 0)
    monkeypatch.setattr("lmrl.models.head.CHUNK_ENTRIES", 11)
    hidden, weight = (torch.randn(n, 5).bfloat16().requires_grad_() for n in (64, 11))
    ids = torch.arange(64) % 11
    logprobs = head_logprobs(hidden, weight, ids)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    exact = weight.detach().float().requires_grad_()
    (hidden.detach().float() @ exact.T).log_softmax(-1).gather(1, ids[:, None]).sum().backward()
    # Added up in bfloat16, 64 chunks would lose whole units.
    assert (weight.grad.float() - exact.grad).abs().max() <= 0.02 * exact.grad.abs().max()


def saved_bytes(compute):
    """Bytes that autograd keeps of one evaluation, each storage once."""
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compute()
    assert result.requires_grad
    return sum(held.values())


def test_packed_rows_keep_less():
    model = model_of("llama")
    inputs = inputs_of([[1, 2, 3, 4, 5, 6]] * 6, [[1] * n for n in (1, 1, 2, 3, 5, 20)])
    kept = {}
    for layout in LAYOUTS[:2]:
        policy = PolicyModel(model)
        policy.layout = layout
        kept[layout.name] = saved_bytes(lambda policy=policy: policy(inputs, temperature=1.0).logprobs)
    assert kept["packed"] < 0.5 * kept["padded"]
