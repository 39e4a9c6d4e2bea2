"""The sampling distribution against transformers' own warpers, and drawing from it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lmrl.engines import FinishReason, SamplingSpec, finish_codes, finish_flags
from lmrl.engines.local.places import draw, draw_from_logits
from lmrl.errors import SettingsError


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.7, 1.0, 1.3]),
    st.sampled_from([0, 1, 5]),
    st.sampled_from([1.0, 0.9, 0.3]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_equals_the_warpers_of_transformers(seed, temperature, top_k, top_p, min_p):
    logits = 2 * torch.randn(4, 12, generator=torch.Generator().manual_seed(seed))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(None, logits).log_softmax(-1)
    spec = SamplingSpec(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert torch.allclose(spec.log_distribution(logits), expected, atol=1e-5)


def test_forbidden_tokens_have_no_mass_and_the_rest_is_renormalised():
    spec = SamplingSpec(forbidden_ids=(0, 2))
    logprobs = spec.log_distribution(torch.zeros(1, 4))
    assert logprobs[0, 0] == logprobs[0, 2] == -math.inf
    assert torch.allclose(logprobs.exp()[0, [1, 3]], torch.tensor([0.5, 0.5]))


def test_temperature_zero_is_greedy():
    logprobs = SamplingSpec(temperature=0).log_distribution(torch.tensor([[0.0, 3.0, 3.0]]))
    assert logprobs.tolist() == [[-math.inf, 0.0, -math.inf]]


def test_draw_is_the_inverse_of_the_cumulative_distribution():
    logprobs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert draw(logprobs, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_takes_an_impossible_token_at_either_end():
    logprobs = torch.tensor([[0.0, 0.3, 0.7, 0.0]]).log().expand(2, 4)
    assert draw(logprobs, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 2]


def test_draw_has_the_right_frequencies():
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    uniforms = torch.rand(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(draw(probabilities.log().expand(40_000, 4), uniforms), minlength=4) / 40_000
    assert torch.allclose(counts, probabilities, atol=0.01)


@pytest.mark.parametrize(
    ("is_eos", "stop", "new", "prompt", "expected"),
    [
        (False, False, 3, 5, FinishReason.NONE),
        (True, False, 3, 5, FinishReason.EOS),
        (True, True, 8, 12, FinishReason.EOS),  # EOS on the last allowed step is an EOS
        (False, True, 8, 12, FinishReason.STOP),
        (False, False, 8, 5, FinishReason.LENGTH),
        (False, False, 8, 12, FinishReason.LENGTH),
        (False, False, 3, 17, FinishReason.CONTEXT),
    ],
)
def test_finish_codes_and_flags(is_eos, stop, new, prompt, expected):
    tensors = (torch.tensor([is_eos]), torch.tensor([stop]), torch.tensor([new]), torch.tensor([prompt]))
    for arrays in (tensors, tuple(t.numpy() for t in tensors)):
        codes = finish_codes(*arrays, max_new_tokens=8, context_length=20)
        assert codes.tolist() == [expected]
        own_end = expected in (FinishReason.EOS, FinishReason.STOP)
        ended = expected != FinishReason.NONE
        assert [f.tolist() for f in finish_flags(codes, "terminate")] == [[ended], [False]]
        assert [f.tolist() for f in finish_flags(codes, "truncate")] == [[own_end], [ended and not own_end]]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 1.0),
        ("max_new_tokens", 0),
        ("on_length", "stop"),
        ("stop_strings", ("",)),
        ("context_length", 1),
    ],
)
def test_bad_settings_are_refused_by_name(setting, value):
    with pytest.raises(SettingsError, match=f"sampling.{setting}"):
        SamplingSpec(**{setting: value})


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from([0.7, 1.0, 1.3]), st.sampled_from([5, 64, 65, 500]))
def test_drawing_from_logits_is_drawing_from_the_distribution(seed, temperature, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(16, vocabulary, generator=generator)
    logits[:, ::3] = -math.inf  # a mask policy's logits
    uniforms = torch.rand(16, generator=generator, dtype=torch.float64)
    uniforms[0], uniforms[1] = 0.0, 1 - 2**-53
    spec = SamplingSpec(temperature=temperature)
    ids, logprobs = draw_from_logits(spec, logits, uniforms)
    distribution = spec.log_distribution(logits)
    # At the very end of the distribution rounding decides which of its last tokens is drawn.
    inner = torch.arange(16) != 1
    assert torch.equal(ids[inner], draw(distribution, uniforms)[inner])
    assert distribution[1, ids[1] + 1 :].exp().sum() < 1e-6, "nothing to speak of comes after it"
    assert torch.allclose(logprobs, distribution.gather(1, ids[:, None]).squeeze(1), atol=1e-5)
    assert torch.isfinite(logprobs).all()
