"""The decode engine against a twin that re-encodes the prefix at every step, one row at a time."""

import shutil

import pytest
import torch

from lmrl.engines import FinishReason, SamplingSpec, sample_batch
from lmrl.engines.batch import requests_of
from lmrl.engines.local.engine import TransformersEngine, TransformersEngineSettings
from lmrl.engines.local.llama_decoder import supports
from lmrl.engines.local.places import draw
from lmrl.errors import NonFiniteError, PromptError, SettingsError
from lmrl.models import PolicyModel, load
from lmrl.models.text_policy import score_logprobs
from lmrl.seeds import token_uniforms
from lmrl.testing import write_tiny_model

PROMPTS = [[3, 5], [3], [4, 6, 7, 8], [3, 5], [9], [3, 5]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tmp_path_factory):
    return load(write_tiny_model(tmp_path_factory.mktemp(request.param), architecture=request.param))


def spec_of(model, **kwargs):
    values = {"max_new_tokens": 12, "eos_ids": model.card.eos_ids, "context_length": model.card.context_length}
    return SamplingSpec(**(values | kwargs))


@torch.no_grad()
def naive_samples(model, prompts, spec, seed):
    """Sample each row alone, running the whole prefix through the model for every token."""
    seeds = torch.tensor([request.seed for request in requests_of(prompts, spec, seed)])
    uniforms = token_uniforms(seeds[:, None], torch.arange(spec.max_new_tokens))
    rows = []
    for row, prompt in enumerate(prompts):
        ids, logprobs = list(prompt), []
        for step in range(spec.max_new_tokens):
            distribution = spec.log_distribution(model.model(torch.tensor([ids])).logits[:, -1])
            token = int(draw(distribution, uniforms[row, step][None]))
            logprobs.append(float(distribution[0, token]))
            ids.append(token)
            if token in spec.eos_ids or len(ids) >= (spec.context_length or 10**9):
                break
        rows.append((ids[len(prompt) :], logprobs))
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3},
        {"top_k": 3},
        {"top_p": 0.8},
        {"forbidden_ids": (1, 4)},
        {"context_length": 9},
        {"temperature": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows_at_once", [2, 512])
def test_equals_the_naive_twin(model, options, rows_at_once):
    spec = spec_of(model, **options)
    engine = TransformersEngine(TransformersEngineSettings(rows=rows_at_once, compact_share=0.0))
    samples = sample_batch(engine, model.model, PROMPTS, spec, seed=7)
    for row, (ids, logprobs) in enumerate(naive_samples(model, PROMPTS, spec, 7)):
        length = int(samples.inputs.action_counts[row])
        assert samples.inputs.action_ids[row, :length].tolist() == ids
        assert torch.allclose(samples.sampler_logprobs[row, :length], torch.tensor(logprobs), atol=1e-5)


def test_late_compaction_changes_nothing(model):
    spec = spec_of(model)
    at_once = sample_batch(
        TransformersEngine(TransformersEngineSettings(compact_share=0.0)), model.model, PROMPTS * 4, spec, 1
    )
    never = sample_batch(
        TransformersEngine(TransformersEngineSettings(compact_share=2.0)), model.model, PROMPTS * 4, spec, 1
    )
    assert torch.equal(at_once.inputs.action_ids, never.inputs.action_ids)
    assert torch.equal(at_once.finish_reasons, never.finish_reasons)
    assert torch.allclose(at_once.sampler_logprobs, never.sampler_logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_sampled_logprobs_equal_rescored_ones(model, temperature):
    spec = spec_of(model, temperature=temperature, forbidden_ids=(4,))
    samples = sample_batch(TransformersEngine(), model.model, PROMPTS * 3, spec, seed=3)
    rescored = score_logprobs(PolicyModel(model.model), samples.inputs, spec, token_budget=40)
    assert torch.allclose(rescored, samples.sampler_logprobs, atol=1e-5)


def test_masks_come_from_lengths_and_cover_the_eos(model):
    samples = sample_batch(TransformersEngine(), model.model, PROMPTS * 8, spec_of(model), seed=0)
    ids, lengths = samples.inputs.action_ids, samples.inputs.action_counts
    assert torch.equal(samples.action_mask.sum(1), lengths)
    ended = samples.finish_reasons == int(FinishReason.EOS)
    assert 0 < ended.sum() < len(ended)
    last = ids.gather(1, lengths[:, None] - 1).squeeze(1)
    assert torch.equal(last == 1, ended)
    assert not ids[~samples.action_mask].any()
    assert not samples.sampler_logprobs[~samples.action_mask].any()
    assert samples.terminated.all() and not samples.truncated.any()


def test_truncation_is_a_choice(model):
    samples = sample_batch(TransformersEngine(), model.model, PROMPTS * 8, spec_of(model, on_length="truncate"), seed=0)
    assert torch.equal(samples.truncated, samples.finish_reasons == int(FinishReason.LENGTH))
    assert torch.equal(samples.terminated, ~samples.truncated)


def test_pad_may_be_the_eos(tmp_path):
    plain = load(write_tiny_model(tmp_path / "a"))
    folder = write_tiny_model(tmp_path / "b", pad_is_eos=True)
    shutil.copyfile(tmp_path / "a" / "model.safetensors", folder / "model.safetensors")
    shared = load(folder)
    assert shared.card.pad_id in shared.card.eos_ids
    results = [sample_batch(TransformersEngine(), m.model, PROMPTS, spec_of(m), seed=0) for m in (plain, shared)]
    assert torch.equal(results[0].inputs.action_ids, results[1].inputs.action_ids)
    assert torch.equal(results[0].action_mask, results[1].action_mask)


def test_equal_prompts_are_prefilled_once(model, monkeypatch):
    batches = []
    base = type(model.model.base_model)
    forward = base.forward

    def counting(self, input_ids=None, **kwargs):
        batches.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(base, "forward", counting)
    supports(model.model)  # which tries the model, once
    batches.clear()
    samples = sample_batch(TransformersEngine(), model.model, [[3, 5]] * 6 + [[4, 5]] * 2, spec_of(model), seed=0)
    assert batches[0] == (2, 2)
    assert samples.group.tolist() == [0] * 6 + [1] * 2


def test_several_eos_ids(model):
    spec = spec_of(model, eos_ids=(1, 5))
    samples = sample_batch(TransformersEngine(), model.model, PROMPTS * 8, spec, seed=0)
    last = samples.inputs.action_ids.gather(1, samples.inputs.action_counts[:, None] - 1).squeeze(1)
    ended = samples.finish_reasons == int(FinishReason.EOS)
    assert set(last[ended].tolist()) == {1, 5}


def test_stop_strings_end_a_response(tmp_path):
    model = load(write_tiny_model(tmp_path, scale=0.0))
    spec = spec_of(model, eos_ids=(1,), stop_strings=("cat",), max_new_tokens=30)
    samples = sample_batch(TransformersEngine(), model.model, PROMPTS * 3, spec, 0, model.card.codec)
    word = model.card.codec.encode("cat")[0]
    stopped = samples.finish_reasons == int(FinishReason.STOP)
    assert stopped.any()
    for row in range(len(stopped)):
        ids = samples.inputs.action_ids[row, : int(samples.inputs.action_counts[row])].tolist()
        assert ids.count(word) == int(stopped[row]) and (not stopped[row] or ids[-1] == word)
    with pytest.raises(SettingsError, match="codec"):
        sample_batch(TransformersEngine(), model.model, PROMPTS, spec, 0)


def test_bad_prompts_and_a_diverged_model(tmp_path):
    model = load(write_tiny_model(tmp_path))
    engine, spec = TransformersEngine(), spec_of(model, context_length=4)
    for prompts, message in [([], "no prompts"), ([[3], []], "prompt 1"), ([[3, 3, 3, 3]], "no room")]:
        with pytest.raises(PromptError, match=message):
            sample_batch(engine, model.model, prompts, spec, seed=0)
    model.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="logits"):
        sample_batch(engine, model.model, [[3]], spec, seed=0)


def test_a_row_that_fills_the_context_may_wait_for_the_others(tmp_path):
    model = load(write_tiny_model(tmp_path, architecture="gpt2", context=12))  # gpt2 has no position beyond its context
    prompts = [[3] * 11] + [[4]] * 15
    spec = spec_of(model, max_new_tokens=11, eos_ids=(1,))
    samples = sample_batch(TransformersEngine(), model.model, prompts, spec, seed=0)
    assert FinishReason(int(samples.finish_reasons[0])) == FinishReason.CONTEXT
    rescored = score_logprobs(PolicyModel(model.model), samples.inputs, spec, 64)
    assert torch.allclose(samples.sampler_logprobs, rescored, atol=1e-5)


def test_convolutions_leave_the_batch_with_their_rows():
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 15, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    model = Lfm2ForCausalLM(Lfm2Config(**sizes, **ids, layer_types=["conv", "full_attention"])).eval()
    spec = SamplingSpec(max_new_tokens=12, eos_ids=(1, 5))
    samples = sample_batch(TransformersEngine(), model, PROMPTS * 3, spec, seed=0)
    rescored = score_logprobs(PolicyModel(model), samples.inputs, spec, 64)
    assert torch.allclose(samples.sampler_logprobs, rescored, atol=1e-5)
