"""The pieces of pretraining: models of any family, held-out likelihood, blocks that do not leak, flops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lmrl.errors import SettingsError
from lmrl.stages.pretrain.config import PretrainModelSettings, PretrainTrainSettings, SampleSettings
from lmrl.stages.pretrain.evaluation import bits_per_byte, document_windows, total_nats
from lmrl.stages.pretrain.model import SpecialIds, count_parameters, make_config, new_model, require_model
from lmrl.stages.pretrain.speed import flops_per_token, peak_flops

IDS = SpecialIds(eos=1, pad=0)
SMALL = {"context_length": 16, "hidden_size": 16, "layers": 2, "heads": 2}


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt2", "qwen2", "qwen3", "mistral", "gpt_neox", "opt", "phi3", "gemma2", "olmo2", "mamba"],
)
def test_a_family_is_made_small_and_reads_no_future(architecture):
    model = new_model(PretrainModelSettings(architecture=architecture, **SMALL), 40, IDS, seed=0).eval()
    assert count_parameters(model) < 60_000
    config = model.config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (40, 1, 0)
    assert (config.hidden_size, config.num_hidden_layers) == (16, 2)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)
    ids = torch.arange(12)[None] + 2
    changed = ids.clone()
    changed[0, -1] = 30
    with torch.no_grad():
        first, second = (model(input_ids=row, use_cache=False).logits for row in (ids, changed))
    torch.testing.assert_close(first[:, :-1], second[:, :-1])


def test_sizes_follow_from_the_width_unless_they_are_named():
    config = make_config(PretrainModelSettings(hidden_size=96, heads=4), 40, IDS)
    assert (config.intermediate_size, config.num_key_value_heads, config.head_dim) == (256, 4, 24)
    named = PretrainModelSettings(hidden_size=96, heads=4, config={"num_key_value_heads": 2, "intermediate_size": 100})
    config = make_config(named, 40, IDS)
    assert (config.num_key_value_heads, config.intermediate_size) == (2, 100)
    assert make_config(PretrainModelSettings(tie_embeddings=False), 40, IDS).tie_word_embeddings is False


def test_the_seed_makes_the_weights():
    settings = PretrainModelSettings(**SMALL)
    one, same, other = (new_model(settings, 40, IDS, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "lama"}, r"model\.architecture: unknown model type 'lama'; did you mean 'llama'\?"),
        ({"architecture": "t5"}, "no causal language model"),
        ({"architecture": "bert"}, r"an encoder.*is_decoder"),
        (
            {"config": {"hiden_act": "relu"}},
            r"model\.config: unknown setting of llama 'hiden_act'; did you mean 'hidden_act'",
        ),
        ({"config": {"vocab_size": 9}}, r"model\.config\.vocab_size is set by the tokenizer"),
        ({"config": {"max_position_embeddings": 9}}, r"set by model\.context_length; set that instead"),
        ({"hidden_size": 30, "heads": 4}, r"no llama can be made|makes no llama"),
        ({"architecture": "gpt2", "hidden_size": 30, "heads": 4}, r"no gpt2 can be made|makes no gpt2"),
    ],
)
def test_models_that_cannot_be_made(options, message):
    with pytest.raises(SettingsError, match=message):
        require_model(PretrainModelSettings(**options), 300)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PretrainModelSettings(context_length=1), r"model\.context_length is 1"),
        (lambda: PretrainTrainSettings(rows=0), r"train\.rows is 0"),
        (lambda: PretrainTrainSettings(steps=0), r"train\.steps is 0"),
        (lambda: PretrainTrainSettings(evaluate_overlap=1.0), r"train\.evaluate_overlap is 1\.0"),
        (lambda: SampleSettings(temperature=0.0), r"samples\.temperature is 0\.0"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(SettingsError, match=message):
        make()


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 90), st.integers(1, 3), st.integers(2, 20), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_windows_predict_every_token_once_with_context_before_it(length, given_tokens, context, overlap):
    row = np.arange(length)
    windows = document_windows(row, given_tokens, context, overlap)
    predicted = [token for window in windows for token in window.tokens[len(window.tokens) - window.counted :]]
    assert predicted == list(range(given_tokens, length))
    for number, window in enumerate(windows):
        assert len(window.tokens) <= context + 1 and (np.diff(window.tokens) == 1).all()
        before = len(window.tokens) - window.counted  # tokens read before the first that counts
        assert before >= (max(1, int(overlap * context)) if number else min(given_tokens, context))


class Bigram(torch.nn.Module):
    """Logits are a table's row of the last token: the likelihood can be had without windows."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, input_ids, use_cache):
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.table[input_ids])


def test_the_sum_of_nats_is_that_of_every_token_whatever_the_windows_and_batches():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 50, generator=generator)
    rows = [torch.randint(50, (length,), generator=generator).numpy() for length in (5, 2, 40, 17, 33)]
    naive = sum(
        float(functional.cross_entropy(table[torch.tensor(row[:-1])], torch.tensor(row[1:]), reduction="sum"))
        for row in rows
    )
    for context, overlap, budget in ((8, 0.0, 8), (8, 0.5, 64), (100, 0.0, 1000)):
        windows = [window for row in rows for window in document_windows(row, 1, context, overlap)]
        found = total_nats(Bigram(table), windows, torch.device("cpu"), budget)
        assert found == pytest.approx(naive, rel=1e-6)


def test_bits_per_byte_by_hand():
    # 100 bytes in 25 tokens and an end token, each of a uniform distribution over 256: 8 bits per token.
    assert bits_per_byte(26 * math.log(256), 100) == pytest.approx(26 * 8 / 100)


def test_flops_per_token_by_hand():
    model = new_model(PretrainModelSettings(context_length=16, hidden_size=8, layers=2, heads=2), 40, IDS, 0)
    attention = 4 * 8 * 8
    feed_forward = 3 * 8 * model.config.intermediate_size
    norms = 2 * 2 * 8 + 8
    parameters = 2 * (attention + feed_forward) + norms + 40 * 8
    assert count_parameters(model) == parameters
    assert flops_per_token(model, 16) == 6 * parameters + 12 * 2 * 2 * 4 * 16
    apart = PretrainModelSettings(context_length=16, hidden_size=8, layers=2, heads=2, tie_embeddings=False)
    assert flops_per_token(new_model(apart, 40, IDS, 0), 16) == flops_per_token(model, 16)


def test_a_processors_peak_is_measured():
    peak, source = peak_flops(torch.device("cpu"), "no")
    assert 1e8 < peak < 1e14 and "measured on this cpu" in source
