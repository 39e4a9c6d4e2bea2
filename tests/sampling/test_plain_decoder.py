"""Families that keep their state in the cache are decoded in steps, all others by whole rows; both draw alike."""

import pytest
import torch

from lmrl.engines import SamplingSpec, sample_batch
from lmrl.engines.local.engine import TransformersEngine, TransformersEngineSettings
from lmrl.engines.local.plain_decoder import PlainDecoder, decodes_in_steps
from lmrl.models import PolicyModel
from lmrl.models.text_policy import score_logprobs
from lmrl_nlpo.mask import MaskPolicy

IDS = {"vocab_size": 131, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SIZES |= {"num_hidden_layers": 3, "max_position_embeddings": 64}
MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 4, "mamba_n_groups": 1}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
IN_STEPS = {
    "Llama": SIZES,
    "Gemma2": SIZES,
    "Mistral": SIZES | {"sliding_window": 4},
    "GPTNeoX": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Lfm2": SIZES | {"layer_types": ["conv", "full_attention", "conv"]},
    "Bamba": SIZES | MAMBA_HEADS | {"attn_layer_indices": [1], "attn_rotary_emb": 8},
    "Qwen3Next": SIZES | DELTA | EXPERTS | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 16},
}
WHOLE = {
    "RecurrentGemma": SIZES | {"lru_width": 32, "attention_window_size": 16},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64},
}
PROMPTS = [[5, 6, 7, 8]] * 4 + [[9, 10]] * 3 + [[11] * 8] * 2


def make_model(family):
    import transformers

    config = getattr(transformers, f"{family}Config")(**IDS, **(IN_STEPS | WHOLE)[family])
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval().float()


@pytest.mark.parametrize("family", [*IN_STEPS, *WHOLE])
def test_sampled_log_probabilities_are_those_of_whole_rows(family):
    model = make_model(family)
    assert decodes_in_steps(model) == (family in IN_STEPS)
    spec = SamplingSpec(max_new_tokens=10, eos_ids=tuple(range(1, 13)))
    samples = sample_batch(TransformersEngine(TransformersEngineSettings(rows=4)), model, PROMPTS, spec, 0)
    scored = score_logprobs(PolicyModel(model), samples.inputs, spec, 2048)
    assert torch.allclose(samples.sampler_logprobs, scored, atol=1e-4)


@pytest.mark.parametrize("family", ["Llama", *WHOLE])
def test_a_mask_policy_restricts_models_without_a_cache_too(family):
    model, spec = make_model(family), SamplingSpec(max_new_tokens=6, eos_ids=(1,))
    mask = MaskPolicy(model, spec, top_p=0.5)
    samples = sample_batch(
        TransformersEngine(TransformersEngineSettings(rows=4)), mask.restrict(model), PROMPTS, spec, 0
    )
    drawn = samples.inputs.action_ids[samples.action_mask]
    kept = mask.support(samples.inputs)
    logits = PolicyModel(model)(samples.inputs).all_logits().masked_fill(~kept, -torch.inf)
    expected = spec.log_distribution(logits).gather(1, drawn[:, None]).squeeze(1)
    assert torch.allclose(samples.sampler_logprobs[samples.action_mask], expected, atol=1e-4)


def test_the_plain_decoder_draws_what_the_others_draw(monkeypatch):
    model, spec = make_model("Llama"), SamplingSpec(max_new_tokens=10, eos_ids=tuple(range(1, 13)))
    engines = [TransformersEngine(TransformersEngineSettings(rows=4, fast_path=fast)) for fast in (True, False)]
    expected = [sample_batch(engine, model, PROMPTS, spec, 0) for engine in engines]
    monkeypatch.setattr(
        "lmrl.engines.local.engine.general_decoder", lambda model, prompts, *_: PlainDecoder(model, prompts)
    )
    found = sample_batch(engines[1], model, PROMPTS, spec, 0)
    for other in expected:
        assert torch.equal(found.inputs.action_ids, other.inputs.action_ids)
        assert torch.allclose(found.sampler_logprobs, other.sampler_logprobs, atol=1e-5)
