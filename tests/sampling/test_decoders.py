"""Decoders against one another: refilled places, ragged groups of samples, and families of models."""

import random

import pytest
import torch

from lmrl.engines import SamplingSpec, sample_batch
from lmrl.engines.local.engine import TransformersEngine, TransformersEngineSettings
from lmrl.engines.local.llama_decoder import supports
from lmrl.models import PolicyModel
from lmrl.models.text_policy import score_logprobs

IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
SIZES = {"vocab_size": 131, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 64}
ENDS = tuple(range(1, 13))


def make_model(family, **options):
    import transformers

    config = getattr(transformers, f"{family}Config")(**(SIZES | IDS | options))
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def make_prompts():
    """Return 60 rows of 13 prompts of 1 to 20 tokens, samples of one prompt here and there."""
    chooser = random.Random(0)
    prompts = [[chooser.randrange(13, 131) for _ in range(chooser.randint(1, 20))] for _ in range(13)]
    rows = [prompt for prompt in prompts for _ in range(chooser.randint(1, 8))]
    chooser.shuffle(rows)
    return rows


def sample(model, prompts, seed=3, spec=None, **settings):
    spec = spec or SamplingSpec(max_new_tokens=24, eos_ids=ENDS)
    return sample_batch(TransformersEngine(TransformersEngineSettings(**settings)), model, prompts, spec, seed)


def require_equal(samples, others):
    for name in ("ids", "lengths", "sampled"):
        assert torch.equal(getattr(samples.inputs, name), getattr(others.inputs, name)), name
    assert torch.equal(samples.finish_reasons, others.finish_reasons)
    assert torch.allclose(samples.sampler_logprobs, others.sampler_logprobs, atol=1e-5)


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(("rows", "compact_share"), [(512, 0.0), (512, 2.0), (16, 0.125), (7, 0.0), (3, 2.0), (1, 0.0)])
def test_rows_do_not_depend_on_their_neighbours(fast_path, rows, compact_share):
    model, prompts = make_model("Llama"), make_prompts()
    alone = [sample(model, prompts, rows=1, fast_path=False)]
    require_equal(sample(model, prompts, rows=rows, compact_share=compact_share, fast_path=fast_path), alone[0])


def test_full_length_rows_are_refilled_all_at_once():
    model, prompts = make_model("Llama"), make_prompts()
    spec = SamplingSpec(max_new_tokens=9)
    wide = sample(model, prompts, spec=spec, fast_path=False)
    for fast_path in (True, False):
        require_equal(sample(model, prompts, spec=spec, rows=8, fast_path=fast_path), wide)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {}),
        ("Qwen3", {}),
    ],
    ids=str,
)
def test_families_of_the_fast_path_give_their_own_logprobs(family, options):
    model, prompts = make_model(family, **options), make_prompts()
    assert supports(model)
    samples = sample(model, prompts, rows=16)
    rescored = score_logprobs(PolicyModel(model), samples.inputs, SamplingSpec(), 512)
    assert torch.allclose(samples.sampler_logprobs, rescored, atol=2e-5)
    require_equal(samples, sample(model, prompts, fast_path=False))


def test_models_that_compute_something_else_take_the_other_path():
    assert not supports(make_model("Mistral", sliding_window=8))
    assert not supports(make_model("Gemma2"))
    assert not supports(make_model("Llama").to(torch.bfloat16))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert not supports(make_model("Llama", rope_parameters=dynamic))
    model, prompts = make_model("Llama"), make_prompts()
    model.model.layers[1].mlp.register_forward_hook(lambda module, arguments, output: 2 * output)
    assert not supports(model)  # a module that does more than its weights say is found by trying
    require_equal(sample(model, prompts, rows=16), sample(model, prompts, fast_path=False))


def test_weights_are_read_anew_at_every_call():
    model, prompts = make_model("Llama"), make_prompts()
    before = sample(model, prompts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = sample(model, prompts)
    assert not torch.equal(before.inputs.action_ids[:, :4], after.inputs.action_ids[:, :4])
    require_equal(after, sample(model, prompts, fast_path=False))


def test_sampled_columns_can_be_learned_from():
    """The fast path works in inference mode, whose tensors autograd refuses."""
    model, prompts = make_model("Llama"), make_prompts()
    samples = sample(model, prompts)
    weight = torch.ones((), requires_grad=True)
    (weight * samples.sampler_logprobs).exp().sum().backward()
    assert weight.grad is not None and not samples.inputs.action_ids.is_inference()


def test_every_row_is_told_once_while_others_are_sampled():
    model, prompts = make_model("Llama"), make_prompts()
    told = {}

    def on_response(response):
        assert response.request.id not in told
        told[response.request.id] = response.ids

    engine = TransformersEngine(TransformersEngineSettings(rows=8))
    samples = sample_batch(
        engine, model, prompts, SamplingSpec(max_new_tokens=24, eos_ids=ENDS), seed=3, on_response=on_response
    )
    lengths = samples.inputs.action_counts.tolist()
    expected = [row[:length] for row, length in zip(samples.inputs.action_ids.tolist(), lengths, strict=True)]
    assert [told[row] for row in range(len(prompts))] == expected
