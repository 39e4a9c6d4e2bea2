"""The policy's log-probabilities and values: right token, right state, whatever the batch looks like."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import pad

from lmrl.algorithms.experience import Responses
from lmrl.algorithms.rollout import Batch, Rollout, UndeclaredNeed
from lmrl.algorithms.sequences import Sequences, state_positions
from lmrl.engines import SamplingSpec
from lmrl.errors import ModelError
from lmrl.models import PolicyModel, load
from lmrl.models.head import head_is_linear
from lmrl.models.layouts.padded import GeneralLayout
from lmrl.models.text_policy import TextPolicy, score_logprobs, score_values
from lmrl.testing import write_tiny_model


def text_inputs(prompts, responses, extra=0):
    inputs = Sequences.of_pairs(zip(prompts, responses, strict=True))
    return replace(inputs, ids=pad(inputs.ids, (0, extra)), sampled=pad(inputs.sampled, (0, extra)))


PROMPTS = [[3, 4, 5], [6], [7, 1, 0, 8, 9]]  # the last one holds an EOS and a pad id of its own
RESPONSES = [[10, 11], [12, 3, 4, 1], [5]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def language_model(request, tmp_path_factory):
    return load(write_tiny_model(tmp_path_factory.mktemp(request.param), architecture=request.param))


@pytest.fixture(scope="module")
def policy(language_model):
    policy = PolicyModel(language_model.model, with_values=True)
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    return policy


def test_rows_are_prompt_response_padding():
    inputs = text_inputs([[3, 4], [5]], [[6], [7, 8]])
    assert inputs.ids.tolist() == [[3, 4, 6], [5, 7, 8]]
    assert state_positions(inputs, 3, include_last=False).tolist() == [[False, True, False], [True, True, False]]
    assert state_positions(inputs, 3, include_last=True).tolist() == [[False, True, True], [True, True, True]]


def test_logprob_t_scores_token_t_plus_one(language_model, policy):
    result = score_logprobs(policy, text_inputs(PROMPTS, RESPONSES), SamplingSpec(), 8)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        with torch.no_grad():
            table = language_model.model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        expected = [float(table[len(prompt) - 1 + t, token]) for t, token in enumerate(response)]
        assert torch.allclose(result[row, : len(response)], torch.tensor(expected), atol=1e-5)
        assert not result[row, len(response) :].any()


@pytest.mark.parametrize("token_budget", [1, 12, 100])
@pytest.mark.parametrize("extra", [0, 6])
def test_batch_size_order_and_padding_change_nothing(policy, token_budget, extra):
    base = text_inputs(PROMPTS, RESPONSES)
    padded = text_inputs(PROMPTS, RESPONSES, extra)
    order = torch.tensor([2, 0, 1])
    for score in (
        lambda i, n: score_logprobs(policy, i, SamplingSpec(), n),
        lambda i, n: score_values(policy, i, n)[0],
    ):
        expected = score(base, 8)
        width = expected.shape[1]
        assert torch.allclose(score(padded, token_budget)[:, :width], expected, atol=1e-5)
        assert torch.allclose(score(base.select(order), token_budget), expected[order], atol=1e-5)
    assert torch.allclose(score_values(policy, padded, 1)[1], score_values(policy, base, 8)[1], atol=1e-5)


def test_values_belong_to_the_state_before_each_token_and_after_the_last(language_model, policy):
    values, after = score_values(policy, text_inputs(PROMPTS, RESPONSES), 8)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        with torch.no_grad():
            output = language_model.model(torch.tensor([prompt + response]), output_hidden_states=True)
            states = policy.value_head(output.hidden_states[-1][0]).squeeze(-1)
        first = len(prompt) - 1
        assert torch.allclose(values[row, : len(response)], states[first : first + len(response)], atol=1e-5)
        assert torch.allclose(after[row], states[first + len(response)], atol=1e-5)


def test_a_new_value_head_says_zero(language_model):
    values, after = score_values(
        PolicyModel(language_model.model, with_values=True), text_inputs(PROMPTS, RESPONSES), 8
    )
    assert not values.any() and not after.any()


def test_families_whose_logits_are_more_than_the_head_take_the_general_path(language_model, policy):
    general = PolicyModel(language_model.model, with_values=True)
    general.value_head.load_state_dict(policy.value_head.state_dict())
    general.layout = GeneralLayout()
    inputs = text_inputs(PROMPTS, RESPONSES)
    assert torch.allclose(
        score_logprobs(general, inputs, SamplingSpec(), 8), score_logprobs(policy, inputs, SamplingSpec(), 8), atol=1e-5
    )
    assert torch.allclose(score_values(general, inputs, 8)[0], score_values(policy, inputs, 8)[0], atol=1e-5)


def test_capped_logits_are_noticed(language_model, monkeypatch):
    head = language_model.model.get_output_embeddings()
    handle = language_model.model.register_forward_hook(
        lambda module, args, output: setattr(output, "logits", 3 * torch.tanh(output.logits / 3)) or output
    )
    try:
        assert head is not None and not head_is_linear(language_model.model)
    finally:
        handle.remove()


def batch_of(inputs):
    mask = inputs.action_mask()
    zeros, flags = torch.zeros(mask.shape), torch.zeros(len(mask), dtype=torch.bool)
    rollout = Rollout(inputs, mask, zeros, zeros, zeros[:, 0], flags, flags, torch.arange(len(mask)))
    return Batch(rollout, zeros, {})


def test_evaluation_masks_everything_and_runs_the_model_once(policy):
    batch = batch_of(text_inputs(PROMPTS, RESPONSES))
    calls = []
    face = TextPolicy(lambda *args, **kwargs: calls.append(1) or policy(*args, **kwargs), SamplingSpec(), True)
    now = face.evaluate(batch)
    assert face.evaluate(batch) is now and len(calls) == 1
    for column in (now.logprobs, now.entropy, now.values):
        assert not column[~batch.action_mask].any()
    assert (now.entropy[batch.action_mask] > 0).all()
    restricted = TextPolicy(policy, SamplingSpec(forbidden_ids=(0, 2)), False).evaluate(batch)
    assert (restricted.logprobs[batch.action_mask] > now.logprobs[batch.action_mask]).all()
    with pytest.raises(ModelError, match="Needs"):
        _ = restricted.values
    with pytest.raises(UndeclaredNeed, match="values"):
        _ = batch.rollout.values
    with pytest.raises(KeyError, match="returns"):
        _ = batch["returns"]


def test_tokens_that_are_no_actions_leave_the_others_as_they_are(policy):
    """A mask with holes (a tool's text), and with rows that count for nothing (a tie's), moves no column."""
    inputs = text_inputs(PROMPTS, RESPONSES)
    whole = inputs.action_mask()
    holes = whole.clone()
    holes[0], holes[1, 1] = False, False
    full, part, none = (
        TextPolicy(policy, SamplingSpec(), True).evaluate(Responses(inputs, mask))
        for mask in (whole, holes, torch.zeros_like(whole))
    )
    for name in ("logprobs", "values", "entropy"):
        assert torch.equal(getattr(part, name), getattr(full, name).masked_fill(~holes, 0))
        assert not getattr(none, name).any()
    assert len(part.log_distributions) == holes.sum()
    none.logprobs.sum().backward()  # nothing to learn is a gradient of zero, not an error


def test_dropout_stays_off(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=15, n_positions=32, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5))
    policy = PolicyModel(model).train()
    inputs = text_inputs(PROMPTS, RESPONSES)
    first, second = (score_logprobs(policy, inputs, SamplingSpec(), 8) for _ in range(2))
    assert torch.equal(first, second)


def test_a_saved_policy_loads_in_plain_transformers(language_model, policy, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy.save(tmp_path, language_model.card.path)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits
        assert torch.equal(again, language_model.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path)("the cat")["input_ids"] == language_model.card.codec.encode(
        "the cat"
    )
    assert torch.equal(load_file(tmp_path / "value_head.safetensors")["weight"], policy.value_head.weight)
    other = PolicyModel(load(tmp_path).model, with_values=True)
    assert other.load_value_head(tmp_path) and torch.equal(other.value_head.weight, policy.value_head.weight)


def test_the_value_head_reads_what_the_lm_head_reads():
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"vocab_size": 15, "hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 1}
    policy = PolicyModel(OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=2)), with_values=True)
    assert score_values(policy, text_inputs(PROMPTS, RESPONSES), 8)[0].shape == (3, 4)


def test_a_cap_is_noticed_where_logits_are_still_small():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"vocab_size": 15, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, final_logit_softcapping=30.0))
    assert not head_is_linear(model)
    assert not model.lm_head._forward_pre_hooks
